"""EXIF orientation: images are turned upright wherever they are read, and labels follow them.

Pillow turns a TIFF itself while it decodes; all other formats are turned here.
"""

import io
import struct

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8, of an image that is open but not decoded yet."""
    if image.format == "PNG" and "exif" not in image.info:
        _find_exif_behind_pixels(image)
    try:
        # Not PngImageFile.getexif, which decodes the pixels first.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block meets Pillow's reader anywhere; the pixels may be valid
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _find_exif_behind_pixels(image: ImageFile.ImageFile) -> None:
    """Read the eXIf chunk that may follow a PNG's pixels, without decoding these."""
    file = image.fp
    assert file is not None
    start = file.tell()
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"eXIf":
            image.info["exif"] = b"Exif\0\0" + file.read(length)
            break
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(start)


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Return the upright image that `orientation` asks for; the same object where it is upright."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def swaps_sides(orientation: int) -> bool:
    """Return whether turning exchanges height and width."""
    return orientation >= 5


def label_is_stored_grid(label: tuple[int, int], image: tuple[int, int], orientation: int) -> bool:
    """Return whether a label was drawn on the pixels as stored, before the image was turned.

    Sizes are (height, width), that of the image when upright. Where turning does not change the
    size, they cannot tell: the label belongs to the upright image, which is what annotation
    tools show.
    """
    return swaps_sides(orientation) and label != image and label == image[::-1]


def fit_label(
    label: UInt8[np.ndarray, "h w"], image: tuple[int, int], orientation: int
) -> UInt8[np.ndarray, "new_h new_w"]:
    """Turn a label with its image where it was drawn on the pixels as stored, else return it."""
    if not label_is_stored_grid(label.shape, image, orientation):
        return label
    return np.array(turn(Image.fromarray(label), orientation))
