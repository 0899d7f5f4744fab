"""Atomic writes, values for JSON, and checks that a folder is writable."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segret_jax.errors import InputError


@contextmanager
def disk_errors_as_input_errors(what: object) -> Iterator[None]:
    """Convert OSError to InputError: "cannot write WHAT", and why."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {error.strerror or error}") from error


def atomic_write(file: Path, content: str | bytes) -> None:
    """Write a file by renaming a complete one; on failure the old content stays.

    Raises:
        OSError: the disk refused it, for example because it is full.
    """
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)


def read_bytes(file: Path, remedy: str = "") -> bytes:
    """Return the content of a file; raise InputError with the reason and `remedy` if that fails."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}){remedy}") from error


def nan_to_none(value: float | int) -> float | int | None:
    """Return a number as JSON holds it, which has no NaN."""
    return None if math.isnan(value) else value


def make_folder(folder: Path) -> None:
    """Create a folder and check, before long work, that it is writable; raise OSError if not."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
