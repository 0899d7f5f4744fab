"""Listing of the files in a folder that end in a suffix, and of the others."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segret_jax.errors import InputError

PICTURES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".avif", ".heic",
    ".heif", ".dng", ".cr2", ".nef", ".arw",
)  # fmt: skip
_FOREIGN_FOLDERS = ("__MACOSX", "@eaDir")  # copies and thumbnails that systems leave behind


@dataclass(frozen=True)
class Files:
    """The files of one kind in a folder.

    Attributes:
        folder: Where they lie.
        suffix: What their names end in; in the files the case may differ.
        by_name: The path below the folder by name, which is the path without the suffix.
        not_read: Other files there, and links to files that do not exist.
    """

    folder: Path
    suffix: str
    by_name: dict[str, str]
    not_read: list[str]

    def path(self, name: str) -> Path:
        """Return where the file of a name lies."""
        return self.folder / self.by_name.get(name, f"{name}{self.suffix}")

    def without_listing(self) -> "Files":
        """Return what `path` needs, which is small: the files in another case than `suffix`."""
        odd = {n: file for n, file in self.by_name.items() if file != f"{n}{self.suffix}"}
        return Files(self.folder, self.suffix, odd, [])


def list_files(folder: Path, suffix: str, kinds: set[tuple[Path, str]]) -> Files:
    """List the files below `folder` that end in `suffix`, in upper or lower case.

    A file belongs to the longest suffix that it has, of this one and of the other `kinds`.

    Args:
        folder: The folder, listed with its subfolders.
        suffix: What the names end in.
        kinds: The (folder, suffix) of the other kinds of files.

    Raises:
        InputError: Two files differ in the case of their suffix alone.
    """
    own = suffix.lower()
    suffixes = {own, *(other.lower() for where, other in kinds if where == folder)}
    by_name: dict[str, str] = {}
    not_read = []
    above = frozenset(map(str, folder.resolve().parents))
    for file, exists in _walk(str(folder), "", above) if folder.is_dir() else ():
        lower = file.lower()
        ending = max((s for s in suffixes if lower.endswith(s)), key=len, default=None)
        if ending is None or (ending == own and not exists):
            not_read.append(file)
        elif ending == own:
            name = file[: len(file) - len(suffix)]
            if name in by_name:
                raise InputError(
                    f"{folder} holds {by_name[name]} and {file}, which are one name; remove or "
                    "rename one"
                )
            by_name[name] = file
    return Files(folder, suffix, by_name, sorted(not_read))


def pictures_not_read(files: Files) -> list[str]:
    """Return the pictures beside `files` that are not read because of their ending."""
    others = (file for file in files.not_read if not file.lower().endswith(files.suffix.lower()))
    return [file for file in others if file.lower().endswith(PICTURES)]


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """Yield (`prefix` and path below `folder`, whether it exists) of all files but hidden ones.

    Links to folders are followed, unless they lead back to a folder that is being listed.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # such as ._x.jpg, .DS_Store, .ipynb_checkpoints
                continue
            path = f"{prefix}{entry.name}"
            if entry.is_symlink() and not os.path.exists(entry.path):
                yield path, False
            elif entry.is_file():
                yield path, True
            elif entry.is_dir() and entry.name not in _FOREIGN_FOLDERS:
                yield from _walk(entry.path, f"{path}/", above | {real})
