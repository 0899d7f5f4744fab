"""The pictures and videos to predict: files, those in folders, and those that patterns match."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segret_jax.data.decode import decode_image
from segret_jax.errors import InputError, abbreviate
from segret_jax.prediction import video_files
from segret_jax.prediction.outputs import DEFAULT_FORMATS, VIDEO_FILES, is_own_output
from segret_jax.prediction.video_files import is_video

# Still images: Pillow also registers videos, documents and arrays, and not all in every build.
STILL = """
    .apng .avif .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pcx
    .pgm .png .pnm .ppm .qoi .ras .sgi .tga .tif .tiff .webp
"""
READABLE = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
SUFFIXES = READABLE & set(STILL.split())
HEIC = {".heic", ".heif"} - SUFFIXES
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # and all that begins with a dot, such as ._photo.jpg
MAX_NAMED = 10


@dataclass
class Found:
    """Pictures and videos to read, and notes about what is not read or written."""

    pictures: dict[Path, Path]
    """The files, and for each its folder below that of the outputs."""
    notes: list[str] = field(default_factory=list)


def find_pictures(
    inputs: Sequence[str | Path],
    *,
    recursive: bool = False,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> Found:
    """Return pictures and videos: those named, those in folders, and those that patterns match.

    Hidden files, system files and outputs of this package are left out. Links to folders are not
    followed.

    Args:
        inputs: Files, folders and patterns such as "photos/*.jpg". "**" matches any subfolders.
        recursive: Whether to read the subfolders of folders; the outputs repeat them.
        formats: What is to be written; videos are left out if it is nothing of theirs. None for
            the rows of Ray.

    Raises:
        InputError: There is no picture, or only HEIC, or a named video cannot be read or written.
    """
    search = _Search(recursive, _why_no_videos(formats))
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            search.add_folder(path)
        elif path.is_file() or path.is_symlink():  # no pipe, which would never end
            search.add_named(path)
        elif glob.has_magic(str(text)):
            for match in sorted(glob.iglob(str(text), recursive=True)):
                if (file := Path(match)).is_dir():
                    search.folders.append(file)
                else:
                    search.add_file(file, Path())
        else:
            raise InputError(f"there is no picture, video or folder {text}")
    notes = search.notes()
    without = [one for one in formats if one not in VIDEO_FILES]
    if without and tuple(formats) != DEFAULT_FORMATS and any(map(is_video, search.found)):
        notes.append(f"not written of videos: {', '.join(without)}")
    if not search.found:
        notes = notes or ["subfolders are not read"] * bool(search.folders)
        raise InputError("; ".join([f"no images in {abbreviate(inputs)}", *notes]))
    if all(file.suffix.lower() in HEIC for file in search.found):
        refuse_heic(next(iter(search.found)))  # now, not after the model is loaded
    return Found(search.found, notes)


def _why_no_videos(formats: Sequence[str]) -> str:
    """Return why no videos can be read or written; empty if they can."""
    if not formats:
        return "with --ray, videos are not read"
    if VIDEO_FILES.keys().isdisjoint(formats):
        return f"of videos --save writes {' and '.join(VIDEO_FILES)} alone"
    return "" if video_files.can_read_videos() else video_files.REMEDY


class _Search:
    """The pictures found so far, and what was left out."""

    def __init__(self, recursive: bool, why_no_videos: str):
        self.recursive, self.why_no_videos = recursive, why_no_videos
        self.found: dict[Path, Path] = {}
        self.others = Counter[str]()
        self.num_outputs = 0
        self.folders: list[Path] = []
        self.unreadable: list[str] = []
        self._seen: set[str] = set()

    def add_folder(self, root: Path) -> None:
        if not self.recursive:
            for file in sorted(root.iterdir()):
                if file.is_dir():
                    self.folders += [] if file.name.startswith(".") else [file]
                else:
                    self.add_file(file, Path())
            return
        for folder, subfolders, names in os.walk(root, onerror=self._add_unreadable):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                self.add_file(file, file.parent.relative_to(root))

    def _add_unreadable(self, error: OSError) -> None:
        self.unreadable.append(f"{error.filename} ({error.strerror})")

    def add_file(self, file: Path, below: Path) -> None:
        """Add a file that was found, if it is a picture."""
        if file.name.startswith(".") or file.name.lower() in SYSTEM_FILES:
            return
        if not file.is_file() and not file.is_symlink():  # such as a pipe
            self.others["special file"] += 1
        elif _is_readable(file, videos=not self.why_no_videos) or is_own_output(file):
            self.add_named(file, below)
        else:
            self.others[file.suffix.lower() or "without a suffix"] += 1

    def add_named(self, file: Path, below: Path = Path()) -> None:
        """Add a file that is named, of any kind, but each only once."""
        if (path := os.path.abspath(file)) in self._seen:
            return
        self._seen.add(path)
        if is_own_output(file):
            self.num_outputs += 1
        elif self.why_no_videos and is_video(file):
            raise InputError(f"{file}: {self.why_no_videos}")
        else:
            self.found[file] = below

    def notes(self) -> list[str]:
        notes = []
        if self.others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))
            remedies = ["convert HEIC to JPEG first"] if self.others.keys() & HEIC else []
            if self.others.keys() & video_files.SUFFIXES:
                remedies.append(self.why_no_videos)
            remedy = f" ({'; '.join(remedies)})" if remedies else ""
            notes.append(f"not read, as no image of a known kind: {kinds}{remedy}")
        if self.num_outputs:
            notes.append(f"not read, as written by segret predict or eval: {self.num_outputs}")
        if folders := [*filter(_holds_pictures, self.folders)]:
            names = abbreviate(folders, MAX_NAMED)
            notes.append(f"subfolders are not read (--recursive does), but hold images: {names}")
        if self.unreadable:
            notes.append(f"folders cannot be read: {abbreviate(self.unreadable, MAX_NAMED)}")
        return notes


def _holds_pictures(folder: Path) -> bool:
    """Look into a folder, not further; a link may lead anywhere, also back."""
    try:
        return not folder.is_symlink() and any(
            _is_readable(file) and file.is_file() and not is_own_output(file)
            for file in folder.iterdir()
        )
    except OSError:
        return False


def _is_readable(file: Path, *, videos: bool = True) -> bool:
    """Return whether a file is named like a picture or, unless they are left out, a video."""
    return file.suffix.lower() in SUFFIXES or (videos and is_video(file))


def refuse_heic(file: Path | str) -> None:
    """Raise InputError for a file that is named like HEIC."""
    if os.path.splitext(file)[1].lower() in HEIC:
        raise InputError(f"{file}: HEIC is not read; convert it to JPEG first")


def read_picture(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture upright, as RGB, 0 to 255; raise InputError if that fails in any way."""
    refuse_heic(file)
    try:
        return decode_image(file)
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise anything for a damaged file
        raise InputError(f"{file}: cannot be read as an image ({error!r})") from error


def num_frames(file: Path) -> int:
    """Return the number of frames or pages of a picture file, of which the first is read."""
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # the first frame was read; damage in later ones does not matter
        return 1
