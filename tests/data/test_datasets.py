"""Class tables and dataset rows against the specification's table (section 6)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from segret_jax.data.datasets import (
    DATASETS,
    IGNORE,
    STRAY,
    get_dataset,
    label_lookup,
    load_class_table,
)
from segret_jax.errors import InputError

NUM_CLASSES = {
    "ade20k": 150,
    "cityscapes": 19,
    "coco_stuff10k": 171,
    "coco_stuff164k": 171,
    "camvid": 11,
}


def test_every_dataset_has_the_classes_of_the_specification() -> None:
    assert {name: row.class_table.num_classes for name, row in DATASETS.items()} == NUM_CLASSES


@pytest.mark.parametrize("name", NUM_CLASSES)
def test_lookup_reaches_every_class_once_and_ignores_255(name: str) -> None:
    lookup = get_dataset(name).labels.lookup
    assert lookup.dtype == np.uint8
    assert lookup[IGNORE] == IGNORE
    classes = lookup[(lookup != IGNORE) & (lookup != STRAY)]
    assert classes.tolist() == list(range(NUM_CLASSES[name]))


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff10k"])
def test_lookup_equals_the_zero_label_reduction(name: str) -> None:
    raw = np.array([*range(NUM_CLASSES[name] + 1), 255], np.uint8)
    reduced = np.where(raw == 0, np.uint8(255), raw) - np.uint8(1)
    reduced[reduced == 254] = 255
    assert get_dataset(name).labels.lookup[raw].tolist() == reduced.tolist()


@pytest.mark.parametrize("name", ["cityscapes", "coco_stuff164k", "camvid"])
def test_lookup_keeps_ids_that_start_at_zero(name: str) -> None:
    lookup = get_dataset(name).labels.lookup
    assert lookup[: NUM_CLASSES[name]].tolist() == list(range(NUM_CLASSES[name]))


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("ade20k", 151, 254),
        ("cityscapes", 19, 254),
        ("coco_stuff10k", 172, 254),
        ("coco_stuff164k", 171, 254),
        ("camvid", 11, 254),
    ],
)
def test_values_without_a_class_are_stray(name: str, first: int, last: int) -> None:
    stray = np.flatnonzero(get_dataset(name).labels.lookup == STRAY)
    assert stray.tolist() == list(range(first, last + 1))


@pytest.mark.parametrize(
    ("name", "split", "layout"),
    [
        ("ade20k", "training", "images/training/**/*.jpg with annotations/training/**/*.png"),
        (
            "cityscapes",
            "validation",
            "leftImg8bit/val/**/*_leftImg8bit.png with gtFine/val/**/*_gtFine_labelTrainIds.png",
        ),
        (
            "coco_stuff10k",
            "validation",
            "images/test2014/**/*.jpg with annotations/test2014/**/*_labelTrainIds.png",
        ),
        (
            "coco_stuff164k",
            "training",
            "images/train2017/**/*.jpg with annotations/train2017/**/*_labelTrainIds.png",
        ),
        ("camvid", "validation", "images/validation/**/*.jpg with annotations/validation/**/*.png"),
    ],
)
def test_layout_is_that_of_the_specification(name: str, split: str, layout: str) -> None:
    assert get_dataset(name).layout(split) == layout


def test_class_table_holds_names_colours_and_raw_ids() -> None:
    ade = load_class_table("ade20k")
    assert ade.class_names[:3] == ("wall", "building", "sky")
    assert ade.colors.shape == (150, 3)
    assert ade.colors[2].tolist() == [0x06, 0xE6, 0xE6]
    assert get_dataset("ade20k").labels.lookup[list(ade.raw_ids)].tolist() == list(range(150))
    assert load_class_table("cityscapes").raw_ids[:3] == (7, 8, 11)
    assert load_class_table("camvid").raw_ids == tuple(range(11))


def test_shared_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_class_table("ade20k").colors[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        get_dataset("ade20k").labels.lookup[0] = 0


def test_label_lookup_names_every_value() -> None:
    lookup = label_lookup({7: 0, 3: IGNORE})
    assert {raw: int(lookup[raw]) for raw in (3, 7, 8, 255)} == {3: 255, 7: 0, 8: 254, 255: 255}


def write_table(path: Path, classes: object) -> Path:
    path.write_text(json.dumps({"classes": classes}))
    return path


def test_class_table_from_the_users_file(tmp_path: Path) -> None:
    classes = [{"id": 0, "name": "cat", "color": "#ff0080"}, {"id": 1, "name": "dog", "color": "0"}]
    classes[1]["color"] = "#000001"
    table = load_class_table(write_table(tmp_path / "pets.json", classes))
    assert (table.name, table.class_names, table.raw_ids) == ("pets", ("cat", "dog"), (0, 1))
    assert table.colors.tolist() == [[255, 0, 128], [0, 0, 1]]


ROW = {"id": 0, "name": "cat", "color": "#ff0080"}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([{"id": 0, "name": "cat"}], "KeyError('color')"),
        ([ROW | {"color": "#ff00"}], "not enough values"),
        ([ROW | {"color": "red"}], "fromhex"),
        ([ROW, ROW], "its ids are [0, 0]"),
        ([ROW | {"id": 1}], "its ids are [1]"),
        ([], "its ids are []"),
        ([ROW | {"id": i} for i in range(255)], "at most 254 classes"),
        (3, "TypeError"),
    ],
)
def test_a_file_that_is_no_class_table(tmp_path: Path, classes: object, message: str) -> None:
    path = write_table(tmp_path / "bad.json", classes)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_class_table(path)
    assert str(caught.value).startswith(f"{path} is no class table")


def test_class_table_that_is_not_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json is no class table \(JSONDecodeError"):
        load_class_table(tmp_path / "broken.json")
    with pytest.raises(InputError, match=r"absent\.json cannot be read: .*No such file"):
        load_class_table(tmp_path / "absent.json")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown dataset 'ade2ok': did you mean 'ade20k'"):
        get_dataset("ade2ok")
    with pytest.raises(InputError, match="unknown dataset 'x': Known: ade20k, camvid, cityscapes"):
        get_dataset("x")
    with pytest.raises(InputError, match=r"unknown class table .*'citiscapes': did you mean"):
        load_class_table("citiscapes")
    with pytest.raises(InputError, match="split of ade20k 'train': did you mean 'training'"):
        get_dataset("ade20k").split_folder("train")
