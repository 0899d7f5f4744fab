"""Which files may be replaced: our own outputs of the same picture, never any other file.

Every output holds PNG text that names this package and the picture that it was made from.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from segret_jax.errors import InputError

SOFTWARE = "segret_jax"


@dataclass(frozen=True)
class Outputs:
    """The files that are written for one picture."""

    label: Path
    overlay: Path
    info: dict[str, str]
    """Text to store in them."""


def plan_outputs(files: Sequence[Path], folder: Path) -> list[Outputs]:
    """Name the outputs of pictures in `folder`: NAME_label.png and NAME_overlay.png.

    Names that differ in their suffix only keep it: x.jpg and x.png give x.jpg_label.png and
    x.png_label.png. Raises InputError if two outputs would have one name, or if one would replace a
    file that is not ours, or ours of another picture.
    """
    stems = Counter(_folded(file.stem) for file in files)
    found: dict[str, Path] = {}
    planned = []
    for file in files:
        name = file.name if stems[_folded(file.stem)] > 1 else file.stem
        other = found.setdefault(_folded(name), file)
        if other is not file:
            raise InputError(f"{file} and {other} would be written to the same files: rename one")
        paths = (folder / f"{name}_label.png", folder / f"{name}_overlay.png")
        planned.append(Outputs(*paths, info=png_text(file.name, file)))
        check_replaceable(dict.fromkeys(paths, planned[-1].info))
    return planned


def _folded(name: str) -> str:
    """Return a form that is equal for names which some file systems take for one."""
    return unicodedata.normalize("NFC", name).lower()


def png_text(name: str, file: Path | None = None) -> dict[str, str]:
    """Return the text for an output that is made from the picture `name`.

    The path of `file` is stored as a hash, because outputs may be published.
    """
    source = name
    if file:
        place = os.fsencode(os.path.realpath(file))
        source = f"{name} ({hashlib.sha256(place).hexdigest()[:12]})"
    return {"Software": SOFTWARE, "Source": source}


def is_own_output(file: Path) -> bool:
    """Return whether a file is one of our outputs."""
    return file.suffix.lower() == ".png" and _info(file).get("Software") == SOFTWARE


def check_replaceable(files: Mapping[Path, Mapping[str, str]]) -> None:
    """Raise InputError for a file that exists, unless it holds the text that is given for it."""
    for file, info in files.items():
        if not os.path.lexists(file):
            continue
        found = _info(file)
        if found.get("Software") != SOFTWARE:
            raise InputError(f"{file} exists and is not an output of ours: give another --out")
        if found.get("Source") != info["Source"]:
            raise InputError(
                f"{file} was made from another picture, {found.get('Source')}: give another --out, "
                "or delete it"
            )


def _info(file: Path) -> dict[Any, Any]:
    """Return the texts of a PNG; nothing of a file that is none."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return dict(image.info)
    except Exception:  # a damaged file meets Pillow's reader anywhere
        return {}
