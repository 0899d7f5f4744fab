"""Text in pictures, in the scripts of class names.

Pillow's built-in font covers ASCII alone and draws a box for every other character. OpenCV includes
fonts for Latin, Greek, Cyrillic, Hebrew, Arabic, Chinese, Japanese and Korean on every system.
"""

import functools
import unicodedata

import cv2
import numpy as np
from jaxtyping import UInt8

BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
FONT_SIZE = 15  # pixels
GAP = 8  # between what is drawn, beside text of FONT_SIZE
WEIGHT = 400  # of 100 to 900; the font's own, 300, is faint in small text
CAPITAL, LINE = 0.7, 1.4  # heights in font sizes; letters reach 1 above, 1/4 below the baseline

Color = tuple[int, int, int]
RGB = UInt8[np.ndarray, "_ _ 3"]


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def readable(text: str, instead: str) -> str:
    """Return the part of `text` that the font can draw, or `instead` if it lacks a letter or digit.

    Other characters that the font lacks, such as emoji, are dropped, and so are control characters.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    kinds = [(char, unicodedata.category(char)[0]) for char in text]  # L: letter, N: number
    kept = [c for c, kind in kinds if kind != "C" and (kind in "LN" or _has_glyph(c))]
    drawn = "".join(kept).strip()
    return drawn if all(map(_has_glyph, drawn)) and (drawn or not text) else instead


@functools.cache
def _has_glyph(char: str) -> bool:
    """Return whether the font has a character; it draws others as a question mark."""
    drawn, missing = canvas(64, 64), canvas(64, 64)
    draw(drawn, char, 16, 32, 24)
    draw(missing, "?", 16, 32, 24)
    return char == "?" or not np.array_equal(drawn, missing)


def text_width(text: str, size: int) -> int:
    """Return how many pixels `text` takes in a line."""
    return cv2.getTextSize((0, 0), text, (0, 0), _font(), size, WEIGHT)[2]


def draw(
    picture: RGB, text: str, left: int | float, middle: int | float, size: int, *, ink: Color = INK
) -> None:
    """Draw a line of text into `picture`, its capitals centered on the row `middle`."""
    baseline = round(left), round(middle + CAPITAL * size / 2)
    cv2.putText(picture, text, baseline, ink, _font(), size, WEIGHT)


def canvas(height: int, width: int) -> RGB:
    """Return an empty picture."""
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def shortened(text: str, size: int, room: int) -> str:
    """Return `text` with its end replaced by an ellipsis where it takes more than `room` pixels."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(f"{text}…", size) > room:
        text = text[:-1].rstrip()
    return f"{text}…" if text else ""
