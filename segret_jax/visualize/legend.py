"""Legends: a swatch and the name of each class in a picture, in the order of the class ids."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.class_table import IGNORE, ClassTable
from segret_jax.visualize.text import (
    FONT_SIZE,
    GAP,
    INK,
    LINE,
    RGB,
    canvas,
    draw,
    readable,
    text_width,
    wrapped,
)

SMALLEST_FONT = 12
FONTS_PER_SIDE = 66  # of a picture's longer side: readable when the picture is fitted to a screen
FONTS_PER_WIDTH = 9  # at least, so that a narrow picture has room for a name of a dozen letters

Labels = UInt8[np.ndarray, "_ _"]
Entry = tuple[int, list[str], int]
"""A class, the lines of its name, and its left edge."""


def add_legend(picture: RGB, table: ClassTable, labels: Sequence[Labels]) -> RGB:
    """Put a legend of the classes in `labels` below a picture; its text grows with the picture."""
    height, width = picture.shape[:2]
    size = min(max(height, width) // FONTS_PER_SIDE, width // FONTS_PER_WIDTH)
    key = legend(table, labels, width=width, size=max(size, SMALLEST_FONT))
    return np.concatenate([picture, key])


def legend(
    table: ClassTable, labels: Sequence[Labels], *, width: int, size: int = FONT_SIZE
) -> RGB:
    """Draw the legend of the classes that occur in `labels`.

    Args:
        table: names and colors.
        labels: class ids; those that are ignored or unknown have no entry.
        width: of the legend. What does not fit beside is put below, long names are broken.
        size: of the font and the swatches, in pixels.
    """
    size = max(1, min(size, width // 2))
    gap, line = round(size * GAP / FONT_SIZE), round(LINE * size)
    counts = sum(np.bincount(label.ravel(), minlength=IGNORE + 1) for label in labels)
    rows = _rows(np.flatnonzero(counts).tolist(), table, width, size, gap)
    heights = [line * max(len(lines) for _, lines, _ in row) for row in rows]
    picture = canvas(sum(heights) - (line - size) + 2 * gap, width)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for i, lines, left in row:
            _draw_swatch(picture[top : top + size, left : left + size], table.colors[i])
            for n, text in enumerate(lines):
                draw(picture, text, left + size + gap // 2, top + size / 2 + n * line, size)
        top += height
    return picture


def _rows(
    classes: Sequence[int], table: ClassTable, width: int, size: int, gap: int
) -> list[list[Entry]]:
    """Place the classes one beside the other, as many as fit in a row."""
    rows: list[list[Entry]] = []
    x = width
    for i in (i for i in classes if i < table.num_classes):
        name = readable(table.class_names[i], instead=f"class {i}")
        lines = wrapped(name, size, width - size - 5 * gap // 2)
        needed = size + gap // 2 + max(text_width(text, size) for text in lines)
        if not rows or x + needed + gap > width:
            rows.append([])
            x = gap
        rows[-1].append((i, lines, x))
        x += needed + 2 * gap
    return rows


def _draw_swatch(area: RGB, color: UInt8[np.ndarray, "3"]) -> None:
    area[:] = INK
    edge = max(1, len(area) // FONT_SIZE)
    area[edge:-edge, edge:-edge] = color
