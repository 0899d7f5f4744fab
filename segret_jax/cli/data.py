"""Commands on datasets.

segret data check    look for faults in labels and images, in a folder or prepared
segret data prepare  write a dataset as ArrayRecord shards, downloading it where that is free
segret data verify   compare prepared datasets with their manifests
"""

import importlib

from segret_jax.errors import InputError, unknown_name

COMMANDS = ("check", "prepare", "verify")


def main(argv: list[str]) -> None:
    """Run the command that `argv` begins with."""
    if not argv:
        raise InputError(f"name a command: segret data {'|'.join(COMMANDS)}")
    if argv[0] in ("-h", "--help"):
        print(__doc__)
    elif argv[0] not in COMMANDS:
        raise unknown_name("command", f"data {argv[0]}", COMMANDS)
    else:
        importlib.import_module(f"segret_jax.cli.data_{argv[0]}").main(argv[1:])
