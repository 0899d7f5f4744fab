"""Reading images and labels from folders, with every fault of a file reported where it arises.

Pillow decodes, never OpenCV: OpenCV turns a palette PNG into colours where the label ids are
wanted, and says nothing. Transforms and batches come later (`transforms`, `pipeline`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, SupportsIndex, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps

from segret_jax.data.datasets import IGNORE, STRAY, DatasetSpec
from segret_jax.errors import InputError

_LABEL_FORM = "a label must be an 8-bit grey or palette PNG whose pixel values are label ids"


class Sample(TypedDict):
    """One image with its label: class ids and 255."""

    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    name: str


@runtime_checkable
class Source(Protocol):
    """Random access to samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: SupportsIndex) -> Sample: ...


def decode_image(path: str | Path, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as RGB, 0 to 255.

    Grey, palette and CMYK become RGB, an alpha channel is dropped. `upright` turns a photograph
    as its EXIF data says; never so beside a label, which was drawn on the raw pixel grid. Raises
    InputError for a file that is missing, broken, or has 16 or more bits per channel.
    """
    with _opened(path) as image:
        mode, stored = image.mode, _stored_form(image)
        if mode.startswith(("I", "F")) or ";16" in stored:
            # Pillow itself would cut a 16-bit RGB PNG to its high bytes without a word.
            raise InputError(
                f"{path}: image has more than 8 bits per channel (stored as {stored or mode}); "
                "convert it to an 8-bit RGB file"
            )
        # A palette goes by way of RGBA: Pillow warns where it is partly transparent.
        pixels = image.convert("RGBA") if mode == "P" else image
        if upright:
            pixels = ImageOps.exif_transpose(pixels)
        return np.array(pixels.convert("RGB"))


def decode_label(path: str | Path) -> UInt8[np.ndarray, "h w"]:
    """Read a label file as the ids that are stored, unmapped: 0 to 255.

    Grey values and palette indices are ids. Raises InputError for a file that is missing or
    broken, or in whose form ids do not survive: colour, 16-bit, 1-bit, 2- and 4-bit grey (which
    Pillow stretches to 0..255), JPEG.
    """
    with _opened(path) as image:
        stored = _stored_form(image)
        exact = image.mode == "P" or (image.mode == "L" and ";" not in stored)
        if not exact or image.format == "JPEG":
            raise InputError(
                f"{path}: label is a {image.format} of mode {image.mode} (stored as {stored}); "
                f"{_LABEL_FORM}"
            )
        return np.array(image)


@contextmanager
def _opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image file; turn what Pillow raises, also while decoding, into InputError."""
    try:
        with Image.open(path) as image:
            yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: image is too large ({error}); cut it into tiles") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as an image ({error}); the file is damaged or no image, "
            "download or extract it again"
        ) from error


def _stored_form(image: ImageFile.ImageFile) -> str:
    """Return Pillow's name for the pixels as stored in the file: "L", "L;4", "RGB;16B"."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def map_label(
    raw: UInt8[np.ndarray, "h w"], lookup: UInt8[np.ndarray, "256"], *, path: str | Path
) -> UInt8[np.ndarray, "h w"]:
    """Turn stored label ids into class ids and 255 by a dataset's lookup table.

    Raises InputError for ids without a meaning; `path` is only named in it. Passed on, such an
    id would be clamped by JAX without a word, or fail far from its cause.
    """
    label = lookup[raw]
    stray = label == STRAY
    if stray.any():
        y, x = (int(i) for i in np.argwhere(stray)[0])
        allowed = np.flatnonzero(lookup[:IGNORE] != STRAY)
        raise InputError(
            f"{path}: label id {raw[y, x]} at pixel (y={y}, x={x}) is no class of this dataset; "
            f"{np.count_nonzero(stray)} such pixels with ids {np.unique(raw[stray]).tolist()}, "
            f"allowed are {allowed[0]} to {allowed[-1]} and {IGNORE}; correct the file or choose "
            "the dataset whose labels these are"
        )
    return label


class FolderSource:
    """The image and label pairs of one split in a folder, by index, in sorted order.

    Serves `grain.MapDataset.source` and pickles as a list of names, so that it can be sent to
    worker processes.
    """

    def __init__(self, spec: DatasetSpec, root: str | Path, split: str) -> None:
        """List and pair the files of `split` ("training" or "validation") below `root`.

        Raises InputError where the root, a folder, or one file of a pair is missing.
        """
        self.spec = spec
        self.split = split
        top = Path(root).expanduser().absolute()
        remedy = (
            f"{spec.name} needs {spec.layout(split)} "
            "in the folder given by --config.data.root=DIR; "
            f"get {spec.download_hint}"
        )
        folder = spec.split_folder(split)
        self._image_folder = top / spec.image_folder / folder
        self._label_folder = top / spec.labels.folder / folder
        for needed in (top, self._image_folder, self._label_folder):
            if not needed.is_dir():
                raise InputError(f"there is no folder {needed}; {remedy}")
        images = _stems(self._image_folder, spec.image_suffix)
        labels = _stems(self._label_folder, spec.labels.suffix)
        if not images:
            raise InputError(f"no *{spec.image_suffix} in {self._image_folder}; {remedy}")
        if images != labels:
            raise InputError(
                f"{_unpaired('images', 'label', images - labels)}"
                f"{_unpaired('labels', 'image', labels - images)}"
                f"in {self._image_folder} and {self._label_folder}; {remedy}"
            )
        self.names = sorted(images)

    def __repr__(self) -> str:
        """Name the data, not the machine: grain compares this text when a run resumes."""
        return f"FolderSource({self.spec.name}, {self.split}, {len(self)} images)"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Read one pair; InputError for a faulty file, a stray label id, or sizes that differ."""
        name = self.names[index]
        image_path = self._image_folder / f"{name}{self.spec.image_suffix}"
        label_path = self._label_folder / f"{name}{self.spec.labels.suffix}"
        image = decode_image(image_path)
        label = map_label(decode_label(label_path), self.spec.labels.lookup, path=label_path)
        if image.shape[:2] != label.shape:
            raise InputError(
                f"{image_path} is {image.shape[0]}x{image.shape[1]} (height x width) but its "
                f"label {label_path} is {label.shape[0]}x{label.shape[1]}; they must be equal"
            )
        return {"image": image, "label": label, "name": name}


def _stems(folder: Path, suffix: str) -> set[str]:
    """Return the paths below `folder` that end in `suffix`, relative and without the suffix."""
    return {
        (Path(where) / file).relative_to(folder).as_posix().removesuffix(suffix)
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.endswith(suffix) and not file.startswith(".")
    }


def _unpaired(kind: str, other: str, names: set[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {kind} without {other} ({shown}) "
