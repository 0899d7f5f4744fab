"""Commands on datasets: python -m segret_jax.data COMMAND --help.

prepare  write a dataset as ArrayRecord shards, downloading it first where that is free
verify   check prepared datasets against their manifests
check    look for faults in the labels and images of a dataset, in a folder or prepared
"""

from segret_jax import cli
from segret_jax.errors import InputError, unknown_name

COMMANDS = ("prepare", "verify", "check")


def main(argv: list[str]) -> None:
    """Run the command that `argv` begins with."""
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if not argv:
        raise InputError(f"name a command: {', '.join(COMMANDS)} (--help says what they do)")
    command, rest = argv[0], argv[1:]
    if command == "prepare":
        from segret_jax.data.shards.prepare import main as run
    elif command == "verify":
        from segret_jax.data.shards.verify import main as run
    elif command == "check":
        from segret_jax.data.doctor.check import main as run
    else:
        raise unknown_name("command", command, COMMANDS)
    run(rest)


if __name__ == "__main__":
    cli.run(main)
