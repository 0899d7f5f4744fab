"""The confusion matrix as CSV, as a picture, and its largest errors as text."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segret_jax.evaluation.pixel_counts import ratio
from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.visualize import text
from segret_jax.visualize.text import FONT_SIZE, GAP, RGB

RIGHT, WRONG = (8, 69, 148), (165, 15, 21)  # colors of 100 %
NO_LABEL = (225, 225, 225)
LINE = (235, 235, 235)
CELLS = (13, 44)  # smallest and largest side of a cell: the name of its row always fits
ROOM = 800  # side of the matrix, while that leaves cells of such a size
NUMBERED = 30  # side from which a cell shows its number
NAME_WIDTH = 150
NUM_PAIRS = 10
HEADING = "Rows: label (gray: none). Columns: prediction. Percent of row; blue: correct, red: wrong"


def write_csv(counts: Int64[np.ndarray, "k k"], class_names: Sequence[str], path: Path) -> None:
    """Write pixel counts, a row for each label and a column for each prediction, with names."""
    rows = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
    content = io.StringIO()
    csv.writer(content).writerows([["label / prediction", *class_names], *rows])
    with disk_errors_as_input_errors(path):
        atomic_write(path, content.getvalue())


def confused_pairs(counts: Int64[np.ndarray, "k k"]) -> list[tuple[int, int, float, float]]:
    """Return the pairs with the largest share of one class's pixels predicted as another.

    Args:
        counts: The confusion matrix.

    Returns:
        Label, prediction, share of the label's pixels, share of all pixels; largest first.
    """
    fraction = np.nan_to_num(_fractions(counts))
    np.fill_diagonal(fraction, 0)
    order = np.argsort(-fraction, axis=None, kind="stable")[:NUM_PAIRS]
    pairs = [divmod(int(i), len(counts)) for i in order if fraction.flat[i] > 0]
    return [(i, j, float(fraction[i, j]), float(counts[i, j] / counts.sum())) for i, j in pairs]


def most_confused(counts: Int64[np.ndarray, "k k"], class_names: Sequence[str]) -> list[str]:
    """Describe the pairs of `confused_pairs`."""
    return [
        f"{100 * share:.1f}% of {class_names[i]} is predicted as {class_names[j]} "
        f"({100 * of_all:.2g}% of all pixels)"
        for i, j, share, of_all in confused_pairs(counts)
    ]


def picture(counts: Int64[np.ndarray, "k k"], class_names: Sequence[str]) -> RGB:
    """Draw each row's fractions: blue where right, red where wrong, gray without any label.

    The color goes with the square root of the fraction, so that a few percent are visible.
    """
    cell = int(np.clip(ROOM // len(counts), *CELLS))
    size = min(FONT_SIZE, cell - 2)
    names = [text.readable(name, instead=f"class {i}") for i, name in enumerate(class_names)]
    short = [text.shortened(name, size, NAME_WIDTH) for name in names]
    left = _column(short, cell, size, to_right=True)
    matrix = np.concatenate([left, _cells(_fractions(counts), cell)], axis=1)
    below = _padded(np.rot90(left), left=left.shape[1])
    errors = ["Most confused:", *most_confused(counts, names)]
    head, foot = (_column(lines, FONT_SIZE + GAP, FONT_SIZE) for lines in ([HEADING], errors))
    parts = [head, np.concatenate([matrix, below]), foot]
    width = max(part.shape[1] for part in parts)
    parts = [_padded(x, GAP, left=GAP, right=width - x.shape[1] + GAP) for x in parts]
    return _padded(np.concatenate(parts), below=GAP)


def _padded(picture: RGB, above: int = 0, below: int = 0, left: int = 0, right: int = 0) -> RGB:
    return np.pad(picture, ((above, below), (left, right), (0, 0)), constant_values=255)


def _fractions(counts: np.ndarray) -> Float64[np.ndarray, "k k"]:
    return ratio(counts, np.broadcast_to(counts.sum(1, keepdims=True), counts.shape))


def _color(fraction: np.ndarray, full: tuple[int, int, int]) -> UInt8[np.ndarray, "*shape 3"]:
    depth = np.sqrt(fraction)[..., None]
    return np.round((1 - depth) * text.BACKGROUND + depth * np.array(full)).astype(np.uint8)


def _cells(fractions: np.ndarray, side: int) -> RGB:
    diagonal = np.eye(len(fractions), dtype=bool)[..., None]
    known = np.nan_to_num(fractions)
    colors = np.where(diagonal, _color(known, RIGHT), _color(known, WRONG))
    colors[np.isnan(fractions)] = NO_LABEL
    pixels = colors.repeat(side, 0).repeat(side, 1)
    pixels[::side] = pixels[:, ::side] = LINE
    for (i, j), fraction in np.ndenumerate(100 * known):
        if side >= NUMBERED and round(fraction) > 0:
            number, size = f"{fraction:.0f}", FONT_SIZE - 2
            x = side * (j + 0.5) - text.text_width(number, size) / 2
            ink = text.BACKGROUND if fraction > 25 else text.INK
            text.draw(pixels, number, x, side * (i + 0.5), size, ink=ink)
    return pixels


def _column(lines: Sequence[str], step: int, size: int, *, to_right: bool = False) -> RGB:
    """Draw a line of text in the middle of every `step` rows."""
    widths = [text.text_width(line, size) for line in lines]
    picture = text.canvas(step * len(lines), max(widths) + GAP)
    for i, (line, width) in enumerate(zip(lines, widths, strict=True)):
        left = max(widths) + GAP // 2 - width if to_right else 0
        text.draw(picture, line, left, step * (i + 0.5), size)
    return picture
