"""The pictures to predict: a file, or those in a folder."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segret_jax.data.decode import decode_image
from segret_jax.errors import InputError, abbreviate
from segret_jax.evaluation.outputs import is_own_output

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


@dataclass(frozen=True)
class Found:
    """Pictures to read, and notes about other files that are not read."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)


def find_pictures(path: Path) -> Found:
    """Return the picture `path`, or those in the folder `path`, sorted, without its subfolders.

    Hidden files, system files and outputs of this package are left out.

    Raises:
        InputError: There is no picture.
    """
    if path.is_file():
        return Found([path])
    if not path.is_dir():
        raise InputError(f"there is no image or folder {path}")
    files, others, outputs, folders = [], Counter[str](), 0, []
    for file in sorted(path.iterdir()):
        if file.name.startswith(".") or file.name.lower() in SYSTEM_FILES:
            continue
        if file.is_dir():
            folders.append(file)
        elif not file.is_file() and not file.is_symlink():  # a pipe, which would never end
            others["special file"] += 1
        elif file.suffix.lower() not in SUFFIXES:
            others[file.suffix.lower() or "without a suffix"] += 1
        elif is_own_output(file):
            outputs += 1
        else:
            files.append(file)
    notes = _notes(others, outputs, [*filter(_holds_pictures, folders)])
    if not files:
        notes = notes or ["subfolders are not read"] * bool(folders)
        raise InputError("; ".join([f"no images in {path}", *notes]))
    return Found(files, notes)


def _notes(others: Counter[str], outputs: int, folders: Sequence[Path]) -> list[str]:
    notes = []
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        remedy = " (convert HEIC to JPEG first)" if others.keys() & HEIC else ""
        notes.append(f"not read, as no image of a known kind: {kinds}{remedy}")
    if outputs:
        notes.append(f"not read, as written by segret predict or eval: {outputs}")
    if folders:
        notes.append(f"subfolders are not read, but hold images: {abbreviate(folders, MAX_NAMED)}")
    return notes


def _holds_pictures(folder: Path) -> bool:
    """Look into a folder, not further; a link may lead anywhere, also back."""
    try:
        return not folder.is_symlink() and any(
            file.suffix.lower() in SUFFIXES and file.is_file() and not is_own_output(file)
            for file in folder.iterdir()
        )
    except OSError:
        return False


def read_picture(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture upright, as RGB, 0 to 255; raise InputError if that fails in any way."""
    if file.suffix.lower() in HEIC:
        raise InputError(f"{file}: HEIC is not read; convert it to JPEG first")
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
