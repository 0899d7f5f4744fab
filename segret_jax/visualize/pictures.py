"""Pictures of predictions: overlays, grids and their files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segret_jax.data.class_table import IGNORE, ClassTable
from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.visualize.legend import Labels, legend
from segret_jax.visualize.text import FONT_SIZE, GAP, RGB, canvas, draw, shortened

HEADINGS = ("image", "label", "prediction")
BLOCK = 2**16  # pixels mixed at once: in float64 they take 24 bytes each


def save_png(
    picture: RGB | Labels | Image.Image,
    path: Path,
    *,
    table: ClassTable | None = None,
    palette: UInt8[np.ndarray, "256 3"] | None = None,
    info: Mapping[str, str] | None = None,
) -> None:
    """Write a PNG atomically, and create its folder.

    Args:
        picture: RGB, or class ids, which are stored as they are.
        path: an existing file is replaced.
        table: of class ids; its colors become the palette.
        palette: the colors of other indices.
        info: text to store in the file.

    Raises:
        InputError: the disk refuses.
    """
    content = encode_png(picture, table=table, palette=palette, info=info)
    with disk_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)


def encode_png(
    picture: RGB | Labels | Image.Image,
    *,
    table: ClassTable | None = None,
    palette: UInt8[np.ndarray, "256 3"] | None = None,
    info: Mapping[str, str] | None = None,
) -> bytes:
    """Return the content of the PNG that `save_png` writes."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if table:
        palette = _palette(table)
    if palette is not None:
        image.putpalette(palette.tobytes())  # 256 colors, so that ids keep 8 bits
    texts = PngInfo()
    for key, value in (info or {}).items():
        texts.add_text(key, value)
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=texts)
    return content.getvalue()


def encode_jpeg(picture: RGB | Image.Image, *, quality: int) -> bytes:
    """Return the content of a JPEG file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def colorize(label: Labels, table: ClassTable) -> RGB:
    """Return each class's color; ignored and unknown ones are black."""
    return _palette(table)[label]


def _palette(table: ClassTable) -> UInt8[np.ndarray, "256 3"]:
    palette = np.zeros((IGNORE + 1, 3), np.uint8)
    palette[: table.num_classes] = table.colors
    return palette


def overlay(
    image: RGB, pred: Labels, table: ClassTable, *, opacity: float = 0.55, out: RGB | None = None
) -> RGB:
    """Mix the prediction's colors into the image, in an array of its size, such as `out`."""
    mixed = np.empty_like(image) if out is None else out
    num_rows = max(1, BLOCK // image.shape[1])
    for top in range(0, len(image), num_rows):
        rows = slice(top, top + num_rows)
        colors = (1 - opacity) * image[rows] + opacity * colorize(pred[rows], table)
        mixed[rows] = (colors + 0.5).astype(np.uint8)
    return mixed


def grid(
    rows: Sequence[tuple[RGB, Labels, Labels]], table: ClassTable, *, title: str, cell: int = 320
) -> RGB:
    """Draw rows of image, label and prediction with headings and a legend.

    Args:
        rows: images, labels and predictions of equal size; ignored pixels are black.
        table: the names and colors of the classes.
        title: drawn above.
        cell: the width in pixels to which images are scaled.
    """
    width = 3 * cell + 4 * GAP
    lefts = [GAP + i * (cell + GAP) for i in range(3)]
    head = canvas(2 * FONT_SIZE + 4 * GAP + 3, width)
    large, room, below = FONT_SIZE + 3, width - 2 * GAP, 1.5 * FONT_SIZE + 3 * GAP + 3
    draw(head, shortened(title, large, room), GAP, GAP + large / 2, large)
    for left, heading in zip(lefts, HEADINGS, strict=True):
        draw(head, shortened(heading, FONT_SIZE, cell), left, below, FONT_SIZE)
    parts = [head]
    for image, label, pred in rows:
        shown = image, colorize(label, table), colorize(pred, table)
        height = max(1, round(image.shape[0] * cell / image.shape[1]))
        parts.append(canvas(height + GAP, width))
        for left, picture in zip(lefts, shown, strict=True):
            scaled = Image.fromarray(picture).resize((cell, height), Image.Resampling.BOX)
            parts[-1][:height, left : left + cell] = scaled
    labels = [one for _, label, pred in rows for one in (label, pred)]
    return np.concatenate([*parts, legend(table, labels, width=width)])
