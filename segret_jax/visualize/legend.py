"""Legends: a swatch and the name of each class in a picture, in the order of the class ids."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.class_table import ClassTable, pixels_of_ids
from segret_jax.visualize import text
from segret_jax.visualize.text import FONT_SIZE, GAP, RGB

SMALLEST_FONT = 12
FONTS_PER_SIDE = 66  # of a picture's longer side: readable when the picture is fitted to a screen
FONTS_PER_WIDTH = 9  # at least, so that a narrow picture has room for a name of a dozen letters

Labels = UInt8[np.ndarray, "_ _"]


def add_legend(picture: RGB, table: ClassTable, labels: Sequence[Labels]) -> RGB:
    """Put a legend of the classes in `labels` below a picture."""
    return np.concatenate([picture, legend_below(picture.shape[:2], table, labels)])


def legend_below(size: tuple[int, int], table: ClassTable, labels: Sequence[Labels]) -> RGB:
    """Draw the legend of a picture of `size` (height, width); its text grows with the picture."""
    width = size[1]
    font = min(max(size) // FONTS_PER_SIDE, width // FONTS_PER_WIDTH)
    return legend(table, labels, width=width, size=max(font, SMALLEST_FONT))


def legend(
    table: ClassTable, labels: Sequence[Labels], *, width: int, size: int = FONT_SIZE
) -> RGB:
    """Draw the legend of the classes that occur in `labels`, in as many rows as needed.

    Args:
        table: names and colors.
        labels: class ids; ignored and unknown ones have no entry.
        width: of the legend in pixels. Names that are wider are cut.
        size: of the font and the swatches in pixels.
    """
    size = max(1, min(size, width // 2))
    gap, line = round(size * GAP / FONT_SIZE), round(text.LINE * size)
    counts = sum(map(pixels_of_ids, labels))
    entries, left, top = [], gap, gap
    for i in (i for i in np.flatnonzero(counts).tolist() if i < table.num_classes):
        name = text.readable(table.class_names[i], instead=f"class {i}")
        name = text.shortened(name, size, width - size - 5 * gap // 2)
        needed = size + gap // 2 + text.text_width(name, size)
        if left > gap and left + needed + gap > width:
            left, top = gap, top + line
        entries.append((i, name, left, top))
        left += needed + 2 * gap
    picture = text.canvas(top + size + gap if entries else 2 * gap, width)
    edge = max(1, size // FONT_SIZE)
    for i, name, left, top in entries:
        swatch = picture[top : top + size, left : left + size]
        swatch[:] = text.INK
        swatch[edge:-edge, edge:-edge] = table.colors[i]
        text.draw(picture, name, left + size + gap // 2, top + size / 2, size)
    return picture
