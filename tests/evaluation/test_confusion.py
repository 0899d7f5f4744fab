"""The confusion matrix as CSV, as a picture whose cells are read back, and in words."""

import csv
from pathlib import Path

import numpy as np
import pytest

from segret_jax.data.class_table import load_class_table
from segret_jax.errors import InputError
from segret_jax.evaluation import confusion
from segret_jax.visualize.text import BACKGROUND

NAMES = ("sky", "Straße, 道路", 'so-called "tree"')
COUNTS = np.array([[80, 15, 5], [0, 300, 100], [0, 0, 0]])


def test_csv_restores_counts_and_names(tmp_path: Path):
    confusion.write_csv(COUNTS, NAMES, tmp_path / "confusion.csv")
    with (tmp_path / "confusion.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == list(NAMES)
    assert [list(map(int, row[1:])) for row in rows] == COUNTS.tolist()


def test_a_csv_that_cannot_be_written_is_named(tmp_path: Path):
    path = tmp_path / "missing" / "confusion.csv"
    with pytest.raises(InputError, match=f"cannot write {path}: No such file"):
        confusion.write_csv(COUNTS, NAMES, path)


def test_most_confused_pairs_come_worst_first():
    assert confusion.most_confused(COUNTS, NAMES) == [
        "25.0% of Straße, 道路 is predicted as so-called \"tree\" (20% of all pixels)",
        "15.0% of sky is predicted as Straße, 道路 (3% of all pixels)",
        "5.0% of sky is predicted as so-called \"tree\" (1% of all pixels)",
    ]  # fmt: skip
    assert confusion.most_confused(np.diag([3, 4]), NAMES[:2]) == []
    assert confusion.most_confused(np.zeros((2, 2), int), NAMES[:2]) == []
    assert len(confusion.most_confused(np.ones((20, 20), int), ["x"] * 20)) == confusion.NUM_PAIRS


def corners(picture: np.ndarray, num_classes: int) -> tuple[int, int, int]:
    """Top, left and side of the cells, found by the lines between them."""
    lines = (picture == confusion.LINE).all(-1)
    side = int(np.clip(confusion.ROOM // num_classes, *confusion.CELLS))
    rows = np.flatnonzero(lines.sum(1) >= num_classes * side)
    columns = np.flatnonzero(lines.sum(0) >= num_classes * side)
    return int(rows[0]), int(columns[0]), side


@pytest.mark.parametrize("num_classes", [11, 19, 150])
def test_cells_have_the_color_of_their_share_in_the_order_of_the_matrix(num_classes):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 100, (num_classes, num_classes)) ** 3
    counts[1] = 0
    names = load_class_table("ade20k").class_names[:num_classes]
    picture = confusion.picture(counts, names)
    top, left, side = corners(picture, num_classes)
    for i, j in [(0, 0), (0, 2), (2, 0), (1, 1), (1, 0), (num_classes - 1, 2)]:
        color = picture[top + side * i + 2, left + side * j + 2]  # beside the number
        if i == 1:
            assert tuple(color) == confusion.NO_LABEL
            continue
        depth = (counts[i, j] / counts[i].sum()) ** 0.5
        full = np.array(confusion.RIGHT if i == j else confusion.WRONG)
        np.testing.assert_allclose(color, 255 + depth * (full - 255), atol=0.51)


@pytest.mark.parametrize("num_classes", [11, 150])
def test_a_name_stands_left_of_its_row_and_below_its_column(num_classes):
    names = ["", "", "name", *[""] * (num_classes - 3)]
    picture = confusion.picture(np.zeros((num_classes, num_classes), int), names)
    top, left, side = corners(picture, num_classes)
    end = num_classes * side
    ink = (picture != BACKGROUND).any(-1)
    rows, columns = ink[top : top + end, :left], ink[top + end :, left : left + end][:20]
    for strip in (rows, columns.T):
        assert set((np.flatnonzero(strip.any(1)) // side).tolist()) == {2}


def test_nothing_is_cut_off_at_the_edge():
    for name in ("camvid", "ade20k"):
        names = load_class_table(name).class_names
        picture = confusion.picture(np.eye(len(names), dtype=int), names)
        edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (edges == BACKGROUND).all()


def test_a_name_too_long_is_cut():
    long = "a name that nobody would ever want to read in full beside a matrix"
    wide = confusion.picture(np.eye(2, dtype=int), [long, "b"])
    narrow = confusion.picture(np.eye(2, dtype=int), ["a", "b"])
    assert len(narrow) < len(wide) <= len(narrow) + confusion.NAME_WIDTH


def test_names_in_other_scripts_are_drawn_as_themselves():
    pictures = [confusion.picture(np.eye(2, dtype=int), [name, "b"]) for name in "äï道路"]
    assert len({picture.tobytes() for picture in pictures}) == 4
