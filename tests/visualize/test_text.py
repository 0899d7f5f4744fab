"""Text in pictures: every script that the font has, never a box or a question mark."""

import numpy as np
import pytest

from segret_jax.visualize.text import canvas, draw, readable, shortened, text_width


def drawn(text: str) -> bytes:
    picture = canvas(40, 100)
    draw(picture, text, 5, 20, 20)
    return picture.tobytes()


@pytest.mark.parametrize("text", ["ä", "ï", "道", "路", "ñ", "Ł", "ф", "Ω", "도", "の", "ط"])
def test_each_character_is_drawn_as_itself(text):
    missing = drawn("\U0010ffff")
    assert missing == drawn("?")  # so does the font draw what it lacks
    assert drawn(text) not in (missing, drawn(""))
    assert readable(text, "class 3") == text


def test_the_characters_of_one_script_differ():
    assert len({drawn(char) for char in "aäâà道路天空"}) == 8


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Straße", "Straße"),
        ("nai\u0308ve", "naïve"),  # as macOS spells it
        ("tree 🌳", "tree"),
        ("🌳", "class 3"),
        ("sun \u2600\ufe0f", "sun"),
        ("ถนน", "class 3"),
        ("ถนน 2", "class 3"),
        ("road\nmarking\x00\u202e", "road marking"),
        ("what?", "what?"),
        ("", ""),
    ],
)
def test_missing_glyphs_are_dropped_or_replaced_by_the_class_number(name, shown):
    found = readable(name, "class 3")
    assert found == shown
    assert drawn("\U0010ffff") not in {drawn(char) for char in found.replace("?", "")}


def test_text_width_equals_the_drawn_width():
    for text in ("road", "wäßrig", "道路", "jungle gym"):
        for size in (12, 40):
            picture = canvas(80, 500)
            draw(picture, text, 0, 40, size)
            columns = np.flatnonzero((picture < 255).any((0, 2)))
            assert text_width(text, size) - size / 4 <= columns[-1] <= text_width(text, size)


def test_shortened_text_fits():
    assert shortened("road", 15, 100) == "road"
    short = shortened("road marking", 15, 60)
    assert short.endswith("…")
    assert text_width(short, 15) <= 60
    assert shortened("road", 15, 1) == ""
