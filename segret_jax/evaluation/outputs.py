"""The outputs of `segret predict`: they replace outputs of the same picture, and no other file.

Every output holds PNG text that names this package and the picture.
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

    Names that differ only in their suffix keep it: x.jpg and x.png give x.jpg_label.png and
    x.png_label.png.

    Args:
        files: The pictures.
        folder: The folder of the outputs.

    Raises:
        InputError: Two outputs would have one name, or one would replace another file than an
            output of the same picture.
    """
    stems = Counter(_folded(file.stem) for file in files)
    found: dict[str, Path] = {}
    planned = []
    for file in files:
        name = file.name if stems[_folded(file.stem)] > 1 else file.stem
        other = found.setdefault(_folded(name), file)
        if other is not file:
            raise InputError(f"{file} and {other} would be written to the same files: rename one")
        label, overlay = folder / f"{name}_label.png", folder / f"{name}_overlay.png"
        info = png_text(file.name, file)
        check_replaceable({label: info, overlay: info})
        planned.append(Outputs(label, overlay, info))
    return planned


def _folded(name: str) -> str:
    """Return a form that is equal for names that some file systems do not distinguish."""
    return unicodedata.normalize("NFC", name).lower()


def png_text(name: str, file: Path | None = None) -> dict[str, str]:
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
    return file.suffix.lower() == ".png" and _info(file).get("Software") == SOFTWARE


def check_replaceable(files: Mapping[Path, Mapping[str, str]]) -> None:
    """Raise InputError for a file that exists, unless it holds the text that is given for it."""
    for file in filter(os.path.lexists, files):
        found = _info(file)
        if found.get("Software") != SOFTWARE:
            raise InputError(f"{file} exists and is not an output of ours: give another --out")
        if (source := found.get("Source")) != files[file]["Source"]:
            remedy = "give another --out, or delete it"
            raise InputError(f"{file} was made from another picture, {source}: {remedy}")


def _info(file: Path) -> dict[Any, Any]:
    """Return the texts of a PNG, none of another file."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return dict(image.info)
    except Exception:  # Pillow's reader raises anything for a damaged file
        return {}
