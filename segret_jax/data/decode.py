"""Decoding of image and label files; each fault is reported with its file.

Pillow decodes, never OpenCV: OpenCV turns a palette PNG into colors where the label ids are
wanted, and says nothing; nor does it of a truncated file.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from segret_jax.data.class_table import IGNORE, UNKNOWN
from segret_jax.data.lfs import refuse_pointer
from segret_jax.data.orientation import read_orientation, swaps_sides, turn
from segret_jax.errors import InputError

File = str | Path | bytes
Formats = list[str] | None
Pixels = UInt8[np.ndarray, "h w 3"]
Label = UInt8[np.ndarray, "h w"]

# Not JPEG 2000: its header does not tell whether it was written without loss.
LOSSLESS_FORMATS = ("PNG", "BMP", "DIB", "GIF", "PPM", "PCX", "TGA", "SGI", "SUN")
LOSSLESS_TIFF = (  # by compression
    "raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma", "zstd",
)  # fmt: skip
_LABEL_FORM = "a label must be an 8-bit gray or palette PNG whose pixel values are label ids"


def decode_image(file: File, *, where: str = "", formats: Formats = None) -> Pixels:
    """Decode an image as RGB; gray, palette and CMYK are converted, alpha is dropped.

    Args:
        file: The path or the content of the file.
        where: The name of the file in errors, if `file` is its content.
        formats: Pillow's names of the formats to read; None: all.

    Returns:
        uint8 [height, width, 3].

    Raises:
        InputError: The file is missing or broken, or has more than 8 bits per channel.
    """
    return decode_turned(file, where=where, formats=formats)[0]


def decode_turned(file: File, *, where: str = "", formats: Formats = None) -> tuple[Pixels, int]:
    """Return the result of `decode_image` and the EXIF orientation, 1 to 8."""
    with _opened(file, where, formats) as (image, path):
        mode, stored = image.mode, stored_form(image)
        if mode.startswith(("I", "F")) or ";16" in stored:
            # Pillow itself would cut a 16-bit RGB PNG to its high bytes without a word.
            raise InputError(
                f"{path}: image has more than 8 bits per channel (stored as {stored or mode}); "
                "convert it to an 8-bit RGB file"
            )
        orientation = read_orientation(image)
        image.load()
        # A palette goes by way of RGBA: Pillow warns where it is partly transparent.
        pixels = image.convert("RGBA") if image.mode == "P" else image
        pixels = pixels if pixels.mode == "RGB" else pixels.convert("RGB")
        if image.format != "TIFF":  # Pillow has turned that already
            pixels = turn(pixels, orientation)
        return np.array(pixels), orientation


def image_size(file: File, *, where: str = "") -> tuple[int, int]:
    """Return the (height, width) of the upright image from its header, as `decode_image`."""
    with _opened(file, where) as (image, _):
        if image.format != "TIFF" and swaps_sides(read_orientation(image)):
            return image.width, image.height
        return image.height, image.width


def decode_label(file: File, *, where: str = "") -> Label:
    """Decode a label file as the stored ids, not mapped to classes.

    Ids are gray values, palette indices, or the array S of a .mat file (COCO-Stuff10k). A label
    with its own EXIF orientation is turned by it.

    Args:
        file: The path or the content of the file.
        where: The name of the file in errors, if `file` is its content.

    Returns:
        uint8 [height, width].

    Raises:
        InputError: The file is missing or broken, or its form does not preserve ids: color, 16-bit,
            1-bit, 2- and 4-bit gray (which Pillow stretches to 0..255), lossy compression, several
            frames.
    """
    where = _location(file, where)
    if where.lower().endswith(".mat"):
        return _decode_mat(file, where)
    with _opened(file, where) as (image, path):
        stored = stored_form(image)
        is_plain = image.mode == "P" or (image.mode == "L" and ";" not in stored)
        form = image.info.get("compression", "") if image.format == "TIFF" else ""
        if not is_plain or not (form in LOSSLESS_TIFF or image.format in LOSSLESS_FORMATS):
            raise InputError(
                f"{path}: label is a {image.format} of mode {image.mode} (stored as "
                f"{' '.join(filter(None, (form, stored)))}); {_LABEL_FORM}"
            )
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise InputError(f"{path}: label has {frames} frames; {_LABEL_FORM}")
        orientation = read_orientation(image)
        return np.array(image if image.format == "TIFF" else turn(image, orientation))


def _decode_mat(file: File, where: str) -> Label:
    import scipy.io  # slow to import, and seldom needed

    try:
        content = io.BytesIO(file) if isinstance(file, bytes) else file
        ids = np.asarray(scipy.io.loadmat(content, variable_names=["S"])["S"])
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file") from error
    except Exception as error:  # a damaged file meets scipy's reader anywhere
        refuse_pointer(file, where)
        raise InputError(
            f"{where}: cannot be read as a MATLAB file with the label map S ({error!r}); "
            "download or extract it again"
        ) from error
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0 or ids.max() > IGNORE:
        raise InputError(
            f"{where}: its array S is {ids.dtype} of shape {ids.shape}; a label map is a matrix of "
            f"integers from 0 to {IGNORE}"
        )
    return ids.astype(np.uint8)


def _location(file: File, where: str) -> str:
    return where or ("image in memory" if isinstance(file, bytes) else str(file))


@contextmanager
def _opened(
    file: File, where: str, formats: Formats = None
) -> Iterator[tuple[ImageFile.ImageFile, str]]:
    """Open an image file; convert Pillow's errors, also those of decoding, to InputError."""
    path = _location(file, where)
    try:
        # Never a path for Pillow: it would map a plain TIFF into memory, and turn that wrongly.
        with (
            io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream,
            Image.open(stream, formats=formats) as image,
        ):
            yield image, path
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: image is too large ({error}); cut it into tiles") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UnidentifiedImageError):
            refuse_pointer(file, path)
        # Pillow names an open file by its address.
        reason = re.sub(r"image file <_io\.[^>]*>", "its kind", str(error))
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); the file is damaged or no image, "
            "download or extract it again"
        ) from error


def stored_form(image: ImageFile.ImageFile) -> str:
    """Return Pillow's name for the pixels as stored in the file: "L", "L;4", "RGB;16B"."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def map_label(raw: Label, lookup: UInt8[np.ndarray, "256"], *, path: str | Path) -> Label:
    """Map stored label ids to class ids and 255.

    Args:
        raw: The stored ids, uint8 [height, width].
        lookup: Class id, 255 or `UNKNOWN` by stored id.
        path: The name of the file in errors.

    Raises:
        InputError: An id is `UNKNOWN`. JAX would clamp it silently.
    """
    label = cv2.LUT(raw, lookup)  # lookup[raw], in a quarter of the time
    unknown = label == UNKNOWN
    if unknown.any():
        y, x = (int(i) for i in np.argwhere(unknown)[0])
        raise InputError(
            f"{path}: label id {raw[y, x]} at pixel (y={y}, x={x}) is no class of this dataset; "
            f"{np.count_nonzero(unknown)} such pixels with ids {np.unique(raw[unknown]).tolist()}; "
            "correct the file or choose the dataset whose labels these are"
        )
    return label
