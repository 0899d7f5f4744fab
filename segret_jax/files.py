"""Files that appear whole or not at all, and folders that are known to take them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segret_jax.errors import InputError


@contextmanager
def disk_errors_as_input_errors(what: object) -> Iterator[None]:
    """Turn the disk's refusal into InputError: "cannot write WHAT", and why."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {error.strerror or error}") from error


def atomic_write(file: Path, content: str | bytes) -> None:
    """Write a file; until the new content is whole, what was there stays.

    Raises OSError, such as for a full disk.
    """
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)


def make_folder(folder: Path) -> None:
    """Make a folder and try to write in it: before long work, not after. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
