"""Git LFS pointers: small text files that stand for files a clone did not download."""

from pathlib import Path

from segret_jax.errors import InputError

_START = b"version https://git-lfs"


def refuse_pointer(file: str | Path | bytes, where: str) -> None:
    """Raise InputError if a file, or its content that lies at `where`, is a pointer."""
    if isinstance(file, bytes):
        content = file
    else:
        with open(file, "rb") as stream:
            content = stream.read(len(_START))
    if content.startswith(_START):
        raise InputError(
            f"{where} is a Git LFS pointer and not the file itself; run `git lfs pull` in its "
            "repository"
        )
