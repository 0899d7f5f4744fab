"""The confusion matrix for people: as CSV, as a picture, and its worst entries in words."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segret_jax.evaluation.pixel_counts import ratio
from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.visualize.text import (
    BACKGROUND,
    FONT_SIZE,
    GAP,
    INK,
    RGB,
    Color,
    canvas,
    draw,
    readable,
    shortened,
    text_width,
)

RIGHT, WRONG = (8, 69, 148), (165, 15, 21)  # colors of 100 %
NO_LABEL = (225, 225, 225)
LINE = (235, 235, 235)
SCALE = (0, 1, 5, 10, 25, 50, 75, 100)  # of the key, per cent
CELLS = (13, 44)  # smallest and largest side of a cell: the name of its row always fits
ROOM = 800  # side of the matrix, while that leaves cells of such a size
NUMBERED = 30  # side from which a cell shows its number
NAME_WIDTH = 150
NUM_PAIRS = 10


def write_csv(counts: Int64[np.ndarray, "k k"], class_names: Sequence[str], path: Path) -> None:
    """Write pixel counts, a row for each label and a column for each prediction, with names."""
    rows = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["label / prediction", *class_names])
    writer.writerows(rows)
    with disk_errors_as_input_errors(path):
        atomic_write(path, text.getvalue())


def most_confused(counts: Int64[np.ndarray, "k k"], class_names: Sequence[str]) -> list[str]:
    """Name the pairs with the largest share of one class's pixels predicted as another."""
    share = np.nan_to_num(_shares(counts))
    np.fill_diagonal(share, 0)
    order = np.argsort(-share, axis=None, kind="stable")[:NUM_PAIRS]
    pairs = [divmod(int(i), len(counts)) for i in order if share.flat[i] > 0]
    return [
        f"{100 * share[i, j]:.1f} % of {class_names[i]} is taken for {class_names[j]} "
        f"({100 * counts[i, j] / counts.sum():.2g} % of all pixels)"
        for i, j in pairs
    ]


def picture(counts: Int64[np.ndarray, "k k"], class_names: Sequence[str]) -> RGB:
    """Draw each row's shares: blue where right, red where wrong, gray without any label.

    The color goes with the square root of the share, so that few per cent are seen.
    """
    cell = int(np.clip(ROOM // len(counts), *CELLS))
    size = min(FONT_SIZE, cell - 2)
    cells = _cells(_shares(counts), cell)
    words = [readable(name, instead=f"class {i}") for i, name in enumerate(class_names)]
    names = [shortened(word, size, NAME_WIDTH) for word in words]
    left, right = (_names(names, cell, size, anchor=anchor) for anchor in ("rm", "lm"))
    top, bottom = np.rot90(right), np.rot90(left)
    if cell >= NUMBERED:  # few enough to find a name from afar
        right, bottom = right[:, :0], bottom[:0]
    beside = ((0, 0), (left.shape[1], right.shape[1]), (0, 0))
    matrix = [
        np.pad(top, beside, constant_values=255),
        np.concatenate([left, cells, right], axis=1),
        np.pad(bottom, beside, constant_values=255),
    ]
    above = ["Rows: label (gray: none). Columns: prediction. Share of the row's pixels:"]
    below = ["Most confused:", *most_confused(counts, words)]
    return _stack([_lines(above), _key(), np.concatenate(matrix), _lines(below)])


def _shares(counts: np.ndarray) -> Float64[np.ndarray, "k k"]:
    return ratio(counts, np.broadcast_to(counts.sum(1, keepdims=True), counts.shape))


def _color(share: np.ndarray, full: tuple[int, int, int]) -> UInt8[np.ndarray, "*shape 3"]:
    depth = np.sqrt(share)[..., None]
    return np.round((1 - depth) * BACKGROUND + depth * np.array(full)).astype(np.uint8)


def _cells(shares: np.ndarray, side: int) -> RGB:
    diagonal = np.eye(len(shares), dtype=bool)[..., None]
    known = np.nan_to_num(shares)
    colors = np.where(diagonal, _color(known, RIGHT), _color(known, WRONG))
    colors[np.isnan(shares)] = NO_LABEL
    pixels = colors.repeat(side, 0).repeat(side, 1)
    pixels[::side] = pixels[:, ::side] = LINE
    if side < NUMBERED:
        return pixels
    for (i, j), share in np.ndenumerate(known):
        if round(100 * share) > 0:
            ink = BACKGROUND if share > 0.25 else INK
            _centered(pixels, f"{100 * share:.0f}", side * (j + 0.5), side * (i + 0.5), ink)
    return pixels


def _centered(picture: RGB, text: str, x: int | float, y: int | float, ink: Color) -> None:
    size = FONT_SIZE - 2
    draw(picture, text, x - text_width(text, size) / 2, y, size, ink=ink)


def _names(names: Sequence[str], cell: int, size: int, *, anchor: str) -> RGB:
    """Draw a name at the middle of each row, at the right ("rm") or left end ("lm")."""
    widths = [text_width(name, size) for name in names]
    picture = canvas(cell * len(names), max(widths) + GAP)
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        x = GAP // 2 if anchor == "lm" else max(widths) + GAP // 2 - width
        draw(picture, name, x, cell * (i + 0.5), size)
    return picture


def _key() -> RGB:
    side, height = 3 * FONT_SIZE, 20
    picture = canvas(2 * height + GAP, side * (len(SCALE) + 2))
    for row, (word, full) in enumerate((("right", RIGHT), ("wrong", WRONG))):
        y = height * row
        draw(picture, word, 0, y + height / 2, FONT_SIZE - 2)
        for i, percent in enumerate(SCALE):
            x, ink = side * (i + 1), BACKGROUND if percent > 25 else INK
            picture[y : y + height, x : x + side] = LINE
            color = _color(np.array(percent / 100), full)
            picture[y + 1 : y + height - 1, x + 1 : x + side - 1] = color
            _centered(picture, f"{percent} %", x + side / 2, y + height / 2, ink)
    return picture


def _lines(texts: Sequence[str]) -> RGB:
    height = FONT_SIZE + GAP
    width = max(text_width(text, FONT_SIZE) for text in texts)
    picture = canvas(height * len(texts), width + 1)
    for i, text in enumerate(texts):
        draw(picture, text, 0, height * i + FONT_SIZE / 2, FONT_SIZE)
    return picture


def _stack(parts: Sequence[RGB]) -> RGB:
    width = max(part.shape[1] for part in parts) + 2 * GAP
    padded = [
        np.pad(part, ((GAP, 0), (GAP, width - part.shape[1] - GAP), (0, 0)), constant_values=255)
        for part in parts
    ]
    return np.pad(np.concatenate(padded), ((0, GAP), (0, 0), (0, 0)), constant_values=255)
