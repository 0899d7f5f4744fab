"""The files in a folder that end in a suffix, and those that do not."""

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
    """The files of one kind: by name, that is, the path below the folder without the suffix."""

    folder: Path
    suffix: str
    by_name: dict[str, str]
    """The whole path below the folder; its suffix may be in another case than `suffix`."""
    not_read: list[str]
    """Other files there, and links to files that do not exist."""

    def path(self, name: str) -> Path:
        """Return where the file of a name lies."""
        return self.folder / self.by_name.get(name, f"{name}{self.suffix}")

    def without_listing(self) -> "Files":
        """Return what `path` needs, which is small: the files in another case than `suffix`."""
        odd = {n: file for n, file in self.by_name.items() if file != f"{n}{self.suffix}"}
        return Files(self.folder, self.suffix, odd, [])


def list_files(folder: Path, suffix: str, kinds: set[tuple[Path, str]]) -> Files:
    """List the files below `folder` that end in `suffix`, in upper or lower case.

    A file belongs to the longest suffix that it has, of this one and of the other `kinds` (folder,
    suffix) of files in this folder. Raises InputError for two files that differ in the case of
    their suffix alone.
    """
    own = suffix.lower()
    suffixes = {own, *(other.lower() for where, other in kinds if where == folder)}
    by_name: dict[str, str] = {}
    not_read = []
    for file, exists in _walk(folder):
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
    """Return the pictures that lie among `files` and are not read for their ending."""
    others = (file for file in files.not_read if not file.lower().endswith(files.suffix.lower()))
    return [file for file in others if file.lower().endswith(PICTURES)]


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield (path below `folder`, whether it exists) of files and links, but no hidden ones.

    Links to folders are followed, unless they lead back to a folder that is being listed.
    """
    if folder.is_dir():
        above = {_identity(parent) for parent in folder.resolve().parents}
        yield from _walk_below(str(folder), "", above)


def _walk_below(
    folder: str, prefix: str, above: set[tuple[int, int]]
) -> Iterator[tuple[str, bool]]:
    identity = _identity(folder)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # such as ._x.jpg, .DS_Store, .ipynb_checkpoints
                continue
            path = f"{prefix}{entry.name}"
            exists = not entry.is_symlink() or os.path.exists(entry.path)  # no link to itself
            if not exists:
                yield path, False
            elif entry.is_file():
                yield path, True
            elif entry.is_dir() and entry.name not in _FOREIGN_FOLDERS:
                yield from _walk_below(entry.path, f"{path}/", above | {identity})


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
