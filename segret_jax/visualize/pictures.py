"""Pictures of predictions: overlays and grids, as 8-bit RGB images, and the files for them."""

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
    picture: RGB | Labels,
    path: Path,
    *,
    table: ClassTable | None = None,
    info: Mapping[str, str] | None = None,
) -> None:
    """Write a PNG, making its folder; it appears whole.

    Args:
        picture: RGB, or class ids, which are stored as they are.
        path: a file that is there is replaced.
        table: where `picture` holds class ids, stores its colors as the palette.
        info: text to store in the file.

    Raises:
        InputError: the disk refuses.
    """
    image = Image.fromarray(picture)
    if table:
        image.putpalette(_palette(table).tobytes())  # 256 colors, so that ids keep 8 bits
    texts = PngInfo()
    for key, value in (info or {}).items():
        texts.add_text(key, value)
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=texts)
    with disk_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.getvalue())


def colorize(label: Labels, table: ClassTable) -> RGB:
    """Paint each class in its color; what is ignored or unknown is black."""
    return _palette(table)[label]


def _palette(table: ClassTable) -> UInt8[np.ndarray, "256 3"]:
    palette = np.zeros((IGNORE + 1, 3), np.uint8)
    palette[: table.num_classes] = table.colors
    return palette


def overlay(image: RGB, pred: Labels, table: ClassTable, *, opacity: float = 0.55) -> RGB:
    """Lay the prediction's colors over the image."""
    mixed = np.empty_like(image)
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

    Each image is scaled to a width of `cell` pixels. What the label ignores is black in the label
    alone: the prediction is shown as it is.
    """
    width = 3 * cell + 4 * GAP
    headings = [(GAP + i * (cell + GAP), text) for i, text in enumerate(HEADINGS)]
    strips = [
        _text([(GAP, title)], width, FONT_SIZE + 3, room=width - 2 * GAP),
        _text(headings, width, FONT_SIZE, room=cell),
    ]
    for image, label, pred in rows:
        pictures = (image, colorize(label, table), colorize(pred, table))
        strips.append(_row([_scaled(picture, cell) for picture in pictures], width))
    shown = [labels for _, *both in rows for labels in both]
    return np.concatenate([*strips, legend(table, shown, width=width)])


def _row(pictures: Sequence[RGB], width: int) -> RGB:
    height, cell = pictures[0].shape[:2]
    strip = canvas(height + GAP, width)
    for i, picture in enumerate(pictures):
        left = GAP + i * (cell + GAP)
        strip[:height, left : left + cell] = picture
    return strip


def _scaled(picture: RGB, width: int) -> RGB:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _text(texts: Sequence[tuple[int, str]], width: int, size: int, *, room: int) -> RGB:
    picture = canvas(size + 2 * GAP, width)
    for x, text in texts:
        draw(picture, shortened(text, size, room), x, GAP + size / 2, size)
    return picture
