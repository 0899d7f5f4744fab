"""Pictures of predictions: overlays, legends and grids, as 8-bit RGB images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from segret_jax.data.class_table import IGNORE, ClassTable
from segret_jax.files import writing

BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
FONT_SIZE = 15
GAP = 8

RGB = UInt8[np.ndarray, "_ _ 3"]
Labels = UInt8[np.ndarray, "_ _"]


def save_png(picture: RGB | Labels, path: Path) -> None:
    """Write a PNG, making its folder; InputError if that cannot be."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def colorize(label: Labels, table: ClassTable) -> RGB:
    """Paint each class in its colour; what is ignored or unknown is black."""
    palette = np.zeros((IGNORE + 1, 3), np.uint8)
    palette[: table.num_classes] = table.colors
    return palette[label]


def overlay(image: RGB, pred: Labels, table: ClassTable, *, opacity: float = 0.55) -> RGB:
    """Lay the prediction's colours over the image."""
    mixed = (1 - opacity) * image + opacity * colorize(pred, table)
    return (mixed + 0.5).astype(np.uint8)


def legend(table: ClassTable, labels: Sequence[Labels], *, width: int) -> RGB:
    """Draw a swatch and the name of each class that occurs in `labels`, most frequent first."""
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)
    classes = [i for i in np.argsort(-counts, kind="stable") if counts[i] and i < table.num_classes]
    font = ImageFont.load_default(FONT_SIZE)
    row, places, x, y = FONT_SIZE + GAP, [], GAP, GAP
    for i in classes:
        advance = int(font.getlength(table.class_names[i])) + FONT_SIZE + 3 * GAP
        if x > GAP and x + advance > width:
            x, y = GAP, y + row
        places.append((i, x, y))
        x += advance
    picture = Image.new("RGB", (width, y + row), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for i, x, y in places:
        color = tuple(int(c) for c in table.colors[i])
        draw.rectangle((x, y, x + FONT_SIZE, y + FONT_SIZE), fill=color, outline=INK)
        draw.text((x + FONT_SIZE + GAP // 2, y - 1), table.class_names[i], fill=INK, font=font)
    return np.asarray(picture)


def with_legend(picture: RGB, table: ClassTable, labels: Sequence[Labels]) -> RGB:
    """Put a legend of the classes in `labels` below a picture."""
    key = legend(table, labels, width=picture.shape[1])
    return np.concatenate([picture, key])


def grid(
    rows: Sequence[tuple[RGB, Labels, Labels]], table: ClassTable, *, title: str, cell: int = 320
) -> RGB:
    """Draw rows of image, label and prediction with headings and a legend.

    Each image is scaled to a width of `cell` pixels; pixels that the label ignores are black in
    the prediction too, since they are not judged.
    """
    width = 3 * cell + 4 * GAP
    strips = [_heading(title, width), _headings(("image", "label", "prediction"), cell, width)]
    shown: list[Labels] = []
    for image, label, pred in rows:
        judged = np.where(label == IGNORE, np.uint8(IGNORE), pred)
        pictures = (image, colorize(label, table), colorize(judged, table))
        strips.append(_row([_scaled(picture, cell) for picture in pictures], width))
        shown += [label, judged]
    strips.append(legend(table, shown, width=width))
    return np.concatenate(strips)


def _row(pictures: Sequence[RGB], width: int) -> RGB:
    height, cell = pictures[0].shape[:2]
    strip = np.full((height + GAP, width, 3), BACKGROUND, np.uint8)
    for i, picture in enumerate(pictures):
        left = GAP + i * (cell + GAP)
        strip[:height, left : left + cell] = picture
    return strip


def _scaled(picture: RGB, width: int) -> RGB:
    height = round(picture.shape[0] * width / picture.shape[1])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _heading(text: str, width: int) -> RGB:
    return _text([(GAP, text)], width, FONT_SIZE + 3)


def _headings(texts: Sequence[str], cell: int, width: int) -> RGB:
    return _text([(GAP + i * (cell + GAP), text) for i, text in enumerate(texts)], width, FONT_SIZE)


def _text(texts: Sequence[tuple[int, str]], width: int, size: int) -> RGB:
    picture = Image.new("RGB", (width, size + 2 * GAP), BACKGROUND)
    for x, text in texts:
        ImageDraw.Draw(picture).text((x, GAP), text, fill=INK, font=ImageFont.load_default(size))
    return np.asarray(picture)
