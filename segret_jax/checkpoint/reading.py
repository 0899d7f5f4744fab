"""Reading stored arrays, with faults of the file told apart from others.

A fault of the file is an `UnreadableError`: something is missing, is not what was saved, or fails
in Orbax. A tree of other arrays than expected is none; nor are the faults of the machine (memory,
disk, network), which pass as they are.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segret_jax.checkpoint.checksum import mismatched_checksums
from segret_jax.errors import InputError
from segret_jax.trees import named_leaves


class UnreadableError(Exception):
    """Something stored that is missing, is not what was saved, or cannot be read."""


@contextmanager
def damage_as_unreadable() -> Iterator[None]:
    """Raise UnreadableError for what damaged files may raise; other faults as they are."""
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableError(f"{error.filename or _first_line(error)} is missing") from error
    except (UnreadableError, InputError, MemoryError, OSError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax's own, of whatever kind
        raise UnreadableError(f"{type(error).__name__}: {_first_line(error)}") from error


def read_stored_json(folder: Path) -> Any:
    """Read a JSON item of a checkpoint. Raises UnreadableError."""
    with damage_as_unreadable():
        return json.loads((folder / "metadata").read_text(encoding="utf-8"))


def read_arrays(folder: Path) -> Any:
    """Read an item of a checkpoint whole, as NumPy arrays, without a word to other processes."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(folder, restore_args=as_numpy)


def structure_difference(folder: Path, expected: Any) -> str:
    """Return how the stored arrays of an item differ from `expected` in names or shapes, or "".

    To be asked before reading: Orbax, once it reads, prints tracebacks of what does not fit.
    Raises UnreadableError.
    """
    with damage_as_unreadable():
        stored = _shapes(ocp.StandardCheckpointHandler().metadata(folder.absolute()).tree)
    ours = _shapes(expected)
    names = [x for x in sorted(stored | ours) if stored.get(x) != ours.get(x)]
    if not names:
        return ""
    there, here = (shapes.get(names[0], "missing") for shapes in (stored, ours))
    return (
        f"{len(names)} arrays differ, the first is {folder.name}/{names[0]} "
        f"({there} there, {here} here)"
    )


def verify_checksums(tree: Any, expected: dict[str, int], *, weighted: bool) -> None:
    """Raise UnreadableError unless arrays have the checksums that were saved with them."""
    if changed := mismatched_checksums(tree, expected, weighted=weighted):
        raise UnreadableError(f"{changed[0]} is not what was saved")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return {path: shape}; a stored path holds the indices of lists as text."""
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
