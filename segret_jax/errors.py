"""Errors that the user can mend, as against faults of the program."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user can mend: a path, a name, a file, a setting.

    The message is one line that names the offending value and the remedy. Entry points print it
    alone, without a traceback, and exit with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return (not raise) the error for a `name` that is not among the `known` ones of a `kind`."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if near and len(names) > 12:
        return InputError(f"unknown {kind} {name!r}: did you mean {near[0]!r}?")
    guess = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {name!r}: {guess}Known: {', '.join(names)}.")


def printable(text: str) -> str:
    """Return `text` with line ends, escape sequences and halves of surrogate pairs spelled out."""
    return text if text.isprintable() else repr(text)[1:-1]
