"""The confusion matrix for people: as CSV, as a picture, and its worst entries in words."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

from segret_jax.evaluation.areas import ratio
from segret_jax.evaluation.visualize import BACKGROUND, FONT_SIZE, GAP, INK, RGB
from segret_jax.files import writing

RIGHT, WRONG = (8, 69, 148), (165, 15, 21)  # colours of 100 %
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
    with writing(path), path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label / prediction", *class_names])
        writer.writerows(rows)


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
    """Draw each row's shares: blue where right, red where wrong, grey without any label.

    The colour goes with the square root of the share, so that few per cent are seen.
    """
    cell = int(np.clip(ROOM // len(counts), *CELLS))
    size = min(FONT_SIZE, cell - 2)
    cells = _cells(_shares(counts), cell)
    names = [_shortened(name, size) for name in class_names]
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
    above = ["Rows: label (grey: none). Columns: prediction. Share of the row's pixels:"]
    below = ["Most confused:", *most_confused(counts, class_names)]
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
    image = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE - 2)
    for (i, j), share in np.ndenumerate(known):
        if round(100 * share) > 0:
            ink = BACKGROUND if share > 0.25 else INK
            center = (side * (j + 0.5), side * (i + 0.5))
            draw.text(center, f"{100 * share:.0f}", fill=ink, font=font, anchor="mm")
    return np.asarray(image)


def _shortened(name: str, size: int) -> str:
    font, short = ImageFont.load_default(size), name
    while font.getlength(short) > NAME_WIDTH:
        short = short.removesuffix("...")[:-1] + "..."
    return short


def _names(names: Sequence[str], cell: int, size: int, *, anchor: str) -> RGB:
    """Draw a name at the middle of each row, at the right ("rm") or left end ("lm")."""
    font = ImageFont.load_default(size)
    width = int(max(map(font.getlength, names))) + GAP
    image = Image.new("RGB", (width, cell * len(names)), BACKGROUND)
    draw, x = ImageDraw.Draw(image), GAP // 2 if anchor == "lm" else width - GAP // 2
    for i, name in enumerate(names):
        draw.text((x, cell * (i + 0.5)), name, fill=INK, font=font, anchor=anchor)
    return np.asarray(image)


def _key() -> RGB:
    side, font = 3 * FONT_SIZE, ImageFont.load_default(FONT_SIZE - 2)
    image = Image.new("RGB", (side * (len(SCALE) + 2), 2 * 20 + GAP), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for row, (word, full) in enumerate((("right", RIGHT), ("wrong", WRONG))):
        y = 20 * row
        draw.text((0, y + 10), word, fill=INK, font=font, anchor="lm")
        for i, percent in enumerate(SCALE):
            color = tuple(map(int, _color(np.array(percent / 100), full)))
            x, ink = side * (i + 1), BACKGROUND if percent > 25 else INK
            draw.rectangle((x, y, x + side - 1, y + 19), fill=color, outline=LINE)
            draw.text((x + side / 2, y + 10), f"{percent} %", fill=ink, font=font, anchor="mm")
    return np.asarray(image)


def _lines(texts: Sequence[str]) -> RGB:
    font = ImageFont.load_default(FONT_SIZE)
    width, height = int(max(map(font.getlength, texts))) + 1, FONT_SIZE + GAP
    image = Image.new("RGB", (width, height * len(texts)), BACKGROUND)
    for i, text in enumerate(texts):
        ImageDraw.Draw(image).text((0, height * i), text, fill=INK, font=font)
    return np.asarray(image)


def _stack(parts: Sequence[RGB]) -> RGB:
    width = max(part.shape[1] for part in parts) + 2 * GAP
    padded = [
        np.pad(part, ((GAP, 0), (GAP, width - part.shape[1] - GAP), (0, 0)), constant_values=255)
        for part in parts
    ]
    return np.pad(np.concatenate(padded), ((0, GAP), (0, 0), (0, 0)), constant_values=255)
