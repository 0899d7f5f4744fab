"""The command `segret`: find the subcommand and run it.

Nothing heavy is imported before a subcommand has read its arguments.
"""

import importlib
import sys

from segret_jax import __version__
from segret_jax.cli import program
from segret_jax.errors import unknown_name

GROUPS = {
    "Train": {
        "demo": "train a small model on generated scenes and draw what it sees",
        "data": "check, prepare and verify datasets",
        "train": "train a model, or continue a run",
        "replay": "find the layer in which a training step stopped being finite",
    },
    "Use a model": {
        "predict": "segment photographs and videos",
        "serve": "open a page that segments photographs, and an HTTP interface",
        "eval": "score a checkpoint on validation images",
        "report": "make a page of runs: scores, curves, confusions, pictures",
        "compare": "tell whether two scores are comparable, and how far they are apart",
    },
    "PyTorch weights": {
        "convert": "convert a PyTorch file to a checkpoint, or back",
        "verify": "certify that weights compute what they should",
    },
    "Plan": {
        "summary": "count parameters, multiply-adds and memory of a model",
        "aot": "compile a run for a TPU slice, ahead of time: does it fit?",
    },
}
WELCOME = f"""\
segret_jax {__version__}: semantic segmentation in JAX, by SegRet and SegMAN. Try first:

  segret predict PHOTO    segment photographs and videos of streets
  segret demo             train a small model on generated scenes (minutes, on a CPU)
  segret --help           all commands"""
COMPUTING = {"demo", "train", "predict", "serve", "eval"}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


def usage() -> str:
    """Return the commands, grouped by task."""
    lines = ["usage: segret COMMAND ..."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<9}{text}" for name, text in group.items())]
    return "\n".join([*lines, "", "segret COMMAND --help describes a command; segret --version."])


def main(argv: list[str]) -> None:
    """Run the subcommand that `argv` begins with."""
    command = argv[0] if argv else ""
    if not argv:
        print(WELCOME)
    elif command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(f"segret_jax {__version__}")
    elif command in COMMANDS:
        importlib.import_module(f"segret_jax.cli.{command}").main(argv[1:])
    else:
        raise unknown_name("command", command, COMMANDS)


def run() -> None:
    """Run `main` as a program."""
    program.run(main, computes=not COMPUTING.isdisjoint(sys.argv[1:2]))
