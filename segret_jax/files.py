"""Atomic writes, values for JSON, errors of damaged files, and checks that a folder is writable."""

import errno
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segret_jax.errors import InputError, shorten

MAX_JSON = 2**24  # bytes of a JSON file from elsewhere


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
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(file)
    except OSError:
        with suppress(OSError):
            partial.unlink()  # which may hold the last space of a full disk
        raise


def read_bytes(file: Path, remedy: str = "") -> bytes:
    """Return the content of a file; raise InputError with the reason and `remedy` if that fails."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}){remedy}") from error


@contextmanager
def damage_as_input_errors(file: object) -> Iterator[None]:
    """Convert whatever a damaged or hostile file makes its readers raise to an InputError.

    An InputError, raised without the path, gets it as its beginning.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # a damaged or hostile file meets the readers anywhere
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a wrong place
            raise InputError(f"{file}: {error.strerror or error}") from error
        text = getattr(error, "strerror", None) or str(error)  # PyAV puts its number before
        reason = shorten(" ".join(text.split())) or type(error).__name__
        raise InputError(
            f"{file}: is damaged or cut off ({reason}); download or save it again"
        ) from error


def read_json_object(file: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds a dict; InputError for another, and for keys given twice."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError(f"longer than {MAX_JSON} bytes")
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
        if not isinstance(content, dict):
            raise ValueError("no {...}")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{file} cannot be read ({shorten(reason)}); {remedy}") from error
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def nan_to_none(value: float | int) -> float | int | None:
    """Return a number as JSON holds it, which has no NaN."""
    return None if math.isnan(value) else value


def make_folder(folder: Path) -> None:
    """Create a folder and check, before long work, that it is writable; raise OSError if not."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
