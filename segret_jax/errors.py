"""Errors that the user can correct, as opposed to bugs."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_TEXT = 300  # characters of a text from a file, in a message


class InputError(ValueError):
    """A mistake that the user can correct: a path, a name, a file, a setting.

    The message is one line with the wrong value and the remedy; lists of tensors and how to get a
    dataset follow on lines of their own. Commands print it without a traceback and exit with 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for an unknown name, to be raised by the caller.

    Args:
        kind: what is named, such as "dataset".
        name: the unknown name.
        known: all known names; they are listed if they are few or none is similar.
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if not names:
        return InputError(f"there is no {kind} {name}")
    if near and len(names) > 20:
        return InputError(f"unknown {kind} {name!r}: did you mean {near[0]!r}?")
    guess = f": did you mean {near[0]!r}?" if near else "."
    return InputError(f"unknown {kind} {name!r}{guess} Known: {', '.join(names)}.")


def abbreviate(things: Sequence[object], shown: int = 3) -> str:
    """Return the first things in one line, and the number of the others."""
    more = f" and {len(things) - shown} more" if len(things) > shown else ""
    return ", ".join(map(str, things[:shown])) + more


def printable(text: str) -> str:
    """Return `text` with unprintable characters escaped: line ends, control codes, surrogates."""
    return text if text.isprintable() else repr(text)[1:-1]


def shorten(text: str) -> str:
    """Return the beginning of `text`, in one line that any terminal can print."""
    return printable(text[:MAX_TEXT]) + "…" * (len(text) > MAX_TEXT)
