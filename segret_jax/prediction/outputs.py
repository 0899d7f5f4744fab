"""The outputs of `segret predict`: they replace outputs of the same picture, and no other file.

Every output names this package and the picture: in the texts of a PNG, in the first two keys of a
JSON file, in arrays of an NPZ file, in the comment of an MP4 file.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segret_jax.errors import InputError, unknown_name
from segret_jax.prediction.video_files import is_video, stored_text

SOFTWARE = "segret_jax"
DEFAULT_FORMATS = ("overlay", "label")
FILES = {
    "overlay": "{}_overlay.png",
    "label": "{}_label.png",
    "color": "{}_color.png",
    "confidence": "{}_confidence.png",
    "probabilities": "{}_probabilities.npz",
    "json": "{}.json",
    "polygons": "{}.geojson",
    "coco": "{}_coco.json",
    "cityscapes": "cityscapes/{}.png",  # the official script finds a picture's result by its start
}
"""The file of each format, by the name of the picture."""
VIDEO_FILES = {"overlay": "{}_overlay.mp4", "color": "{}_color.mp4"}
"""The formats that are written of a video."""

_JSON_MARK = re.compile(rf'\s*{{\s*"Software": "{SOFTWARE}",\s*"Source": ("(?:[^"\\]|\\.)*")')
_MAX_MARK = 4096  # bytes


@dataclass(frozen=True)
class Outputs:
    """The files that are written for one picture, by format."""

    files: dict[str, Path]
    info: dict[str, str]
    """Text to store in them."""


def parse_formats(text: str, known: Mapping[str, str] = FILES) -> tuple[str, ...]:
    """Return the formats of a list such as "overlay,label"; InputError if one is not `known`."""
    formats = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for name in formats:
        if name not in known:
            if " " in name:
                raise InputError(f"the formats are {text!r}: write commas between them")
            raise unknown_name("format", name, known)
    if not formats:
        raise InputError(f"no format is named: choose among {', '.join(known)}")
    return formats


def output_files(
    folder: Path, name: str, formats: Iterable[str], *, known: Mapping[str, str] = FILES
) -> dict[str, Path]:
    """Return the files of the picture `name`, by format, of those that are `known`."""
    return {one: folder / known[one].format(name) for one in formats if one in known}


def plan_outputs(
    pictures: Mapping[Path, Path], folder: Path, formats: Sequence[str]
) -> list[Outputs]:
    """Name the outputs of each picture, such as NAME_label.png.

    Pictures of one name from different folders are written to subfolders, named like their own.
    Names that differ only in their suffix keep it: x.jpg and x.png give x.jpg_label.png and
    x.png_label.png.

    Args:
        pictures: The files, and for each the folder below `folder` of its outputs.
        folder: The folder of the outputs.
        formats: Keys of `FILES`.

    Raises:
        InputError: Two outputs would have one name, or one would replace another file than an
            output of the same picture.
    """
    folders = _distinct_folders(pictures)
    stems = Counter(_folded(below / file.stem) for file, below in folders.items())
    found: dict[str, Path] = {}
    planned = []
    for file, below in folders.items():
        name = file.name if stems[_folded(below / file.stem)] > 1 else file.stem
        known = VIDEO_FILES if is_video(file) else FILES
        files = output_files(folder / below, name, formats, known=known)
        for output in files.values():
            other = found.setdefault(_folded(output), file)
            if other is not file:
                raise InputError(
                    f"{file} and {other} would be written to the same files: rename one"
                )
        info = source_info(file.name, file)
        check_replaceable(dict.fromkeys(files.values(), info))
        planned.append(Outputs(files, info))
    return planned


def _distinct_folders(pictures: Mapping[Path, Path]) -> dict[Path, Path]:
    """Return the folder of each picture's outputs, so that equal names are in different ones."""
    groups = defaultdict(list)
    for file, below in pictures.items():
        groups[_folded(below / file.stem)].append(file)
    folders = dict(pictures)
    for files in groups.values():
        parents = [os.path.abspath(file.parent) for file in files]
        if len(set(parents)) > 1:
            common = os.path.commonpath(parents)
            for file, parent in zip(files, parents, strict=True):
                folders[file] = pictures[file] / os.path.relpath(parent, common)
    return folders


def _folded(path: Path) -> str:
    """Return a form that is equal for names that some file systems do not distinguish."""
    return unicodedata.normalize("NFC", str(path)).lower()


def source_info(name: str, file: Path | None = None) -> dict[str, str]:
    """Return the text for an output of the picture `name`.

    The path of `file` is stored as a hash, because outputs may be published.

    Args:
        name: The name of the picture.
        file: Its path, if pictures of one name are to be told apart.
    """
    path = os.fsencode(os.path.realpath(file)) if file else b""
    suffix = f" ({hashlib.sha256(path).hexdigest()[:12]})" if file else ""
    return {"Software": SOFTWARE, "Source": name + suffix}


def is_own_output(file: Path) -> bool:
    """Return whether a file is an output of this package."""
    return _source(file) is not None


def check_replaceable(files: Mapping[Path, Mapping[str, str]]) -> None:
    """Raise InputError for a file that exists, unless it holds the text that is given for it."""
    for file in filter(os.path.lexists, files):
        source = _source(file)
        if source is None:
            raise InputError(f"{file} exists and is not an output of ours: give another --out")
        if source != files[file]["Source"]:
            remedy = "give another --out, or delete it"
            raise InputError(f"{file} was made from another picture, {source}: {remedy}")


def _source(file: Path) -> str | None:
    """Return the picture that an output of this package was made from; None of another file."""
    try:
        match file.suffix.lower():
            case ".png":
                with Image.open(file, formats=["PNG"]) as image:
                    info = {key: str(image.info[key]) for key in ("Software", "Source")}
            case ".npz":
                with np.load(file) as arrays:  # never pickled ones
                    info = {key: str(arrays[key]) for key in ("Software", "Source")}
            case ".json" | ".geojson":
                with file.open("rb") as stream:
                    mark = _JSON_MARK.match(stream.read(_MAX_MARK).decode(errors="replace"))
                return json.loads(mark[1]) if mark else None
            case ".mp4":
                info = stored_text(file)
            case _:
                return None
    except Exception:  # a reader raises anything for a damaged file
        return None
    return info.get("Source") if info.get("Software") == SOFTWARE else None
