"""Class tables and dataset rows against the published datasets."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from segret_jax.data.class_table import IGNORE, UNKNOWN, label_lookup, load_class_table
from segret_jax.data.datasets import DATASETS, get_dataset, load_dataset
from segret_jax.data.names import PUBLISHED, SYNTHETIC
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
    lookup = get_dataset(name).layouts[0].lookup
    assert lookup.dtype == np.uint8
    assert lookup[IGNORE] == IGNORE
    classes = lookup[(lookup != IGNORE) & (lookup != UNKNOWN)]
    assert classes.tolist() == list(range(NUM_CLASSES[name]))


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff10k"])
def test_lookup_equals_the_zero_label_reduction(name: str) -> None:
    raw = np.array([*range(NUM_CLASSES[name] + 1), 255], np.uint8)
    reduced = np.where(raw == 0, np.uint8(255), raw) - np.uint8(1)
    reduced[reduced == 254] = 255
    assert get_dataset(name).layouts[0].lookup[raw].tolist() == reduced.tolist()


@pytest.mark.parametrize("name", ["cityscapes", "coco_stuff164k", "camvid"])
def test_lookup_keeps_ids_that_start_at_zero(name: str) -> None:
    lookup = get_dataset(name).layouts[0].lookup
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
def test_values_without_a_class_are_unknown(name: str, first: int, last: int) -> None:
    unknown = np.flatnonzero(get_dataset(name).layouts[0].lookup == UNKNOWN)
    assert unknown.tolist() == list(range(first, last + 1))


@pytest.mark.parametrize(
    ("name", "split", "layouts"),
    [
        ("ade20k", "training", ["images/training/**/*.jpg with annotations/training/**/*.png"]),
        (
            "cityscapes",
            "validation",
            [
                f"leftImg8bit/val/**/*_leftImg8bit.png with gtFine/val/**/*_gtFine_{kind}.png"
                for kind in ("labelTrainIds", "labelIds")
            ],
        ),
        (
            "coco_stuff10k",
            "validation",
            [
                "images/test2014/**/*.jpg with annotations/test2014/**/*_labelTrainIds.png",
                "images/**/*.jpg with annotations/**/*.mat and imageLists/test.txt",
            ],
        ),
        (
            "coco_stuff164k",
            "training",
            [
                "images/train2017/**/*.jpg with annotations/train2017/**/*_labelTrainIds.png",
                "images/train2017/**/*.jpg with annotations/train2017/**/*.png",
                "images/train2017/**/*.jpg with stuffthingmaps/train2017/**/*.png",
                "images/train2017/**/*.jpg with stuffthingmaps_trainval2017/train2017/**/*.png",
            ],
        ),
        (
            "camvid",
            "validation",
            [
                "images/validation/**/*.jpg with annotations/validation/**/*.png",
                "val/**/*.png with valannot/**/*.png",
            ],
        ),
    ],
)
def test_layouts_are_those_of_the_archives_and_of_mmsegmentation(
    name: str, split: str, layouts: list[str]
) -> None:
    assert [layout.describe(split) for layout in get_dataset(name).layouts] == layouts


# The field's own tables, written down independently: Cityscapes' labels.py, COCO-Stuff's gaps.
CITYSCAPES_TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def lookup_of(name: str, layout: str) -> list[int]:
    return get_dataset(name).layout(layout).lookup.tolist()


def test_label_ids_of_cityscapes_give_the_train_ids() -> None:
    lookup = lookup_of("cityscapes", "labelIds")
    assert lookup[:34] == [CITYSCAPES_TRAIN_IDS.get(i, 255) for i in range(34)]
    assert set(lookup[34:255]) == {UNKNOWN}
    assert lookup[255] == 255  # the license plate, -1


def test_all_three_forms_of_coco_stuff_give_the_same_classes() -> None:
    with_gaps = [i for i in range(1, 183) if i not in COCO_GAPS]
    mat = lookup_of("coco_stuff10k", "mat")
    assert [mat[i] for i in with_gaps] == list(range(171))
    assert {mat[i] for i in (0, *COCO_GAPS)} == {IGNORE}
    maps = lookup_of("coco_stuff164k", "stuffthingmaps")
    assert maps[:182] == mat[1:183]
    assert set(mat[183:255]) == set(maps[182:255]) == {UNKNOWN}


def test_segnets_camvid_has_void_as_its_twelfth_class() -> None:
    assert lookup_of("camvid", "segnet")[:13] == [*range(11), IGNORE, UNKNOWN]


@pytest.mark.parametrize("name", NUM_CLASSES)
def test_void_values_are_ignored_in_every_layout(name: str) -> None:
    for layout in get_dataset(name).layouts:
        assert layout.void
        assert set(layout.lookup[list(layout.void)].tolist()) == {IGNORE}


def test_class_table_holds_names_colors_and_raw_ids() -> None:
    ade = load_class_table("ade20k")
    assert ade.class_names[:3] == ("wall", "building", "sky")
    assert ade.colors.shape == (150, 3)
    assert ade.colors[2].tolist() == [0x06, 0xE6, 0xE6]
    assert get_dataset("ade20k").layouts[0].lookup[[i for (i,) in ade.raw_ids]].tolist() == list(
        range(150)
    )
    assert load_class_table("cityscapes").raw_ids[:3] == ((7,), (8,), (11,))
    assert load_class_table("camvid").raw_to_class() == {i: i for i in range(11)}


def test_shared_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_class_table("ade20k").colors[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        get_dataset("ade20k").layouts[0].lookup[0] = 0


def test_label_lookup_names_every_value() -> None:
    lookup = label_lookup({7: 0, 3: IGNORE})
    assert {raw: int(lookup[raw]) for raw in (3, 7, 8, 255)} == {3: 255, 7: 0, 8: 254, 255: 254}


def write_table(path: Path, classes: object) -> Path:
    path.write_text(json.dumps({"classes": classes}), encoding="utf-8")
    return path


def test_class_table_from_the_users_file(tmp_path: Path) -> None:
    classes = [{"id": 0, "name": "cat", "color": "#ff0080"}, {"id": 1, "name": "dog", "color": "0"}]
    classes[1]["color"] = "#000001"
    table = load_class_table(write_table(tmp_path / "pets.json", classes))
    assert (table.name, table.class_names) == ("pets", ("cat", "dog"))
    assert table.raw_ids == ((0,), (1,))
    assert table.colors.tolist() == [[255, 0, 128], [0, 0, 1]]


ROW = {"id": 0, "name": "cat", "color": "#ff0080"}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([{"id": 0, "name": "cat"}], "KeyError('color')"),
        ([ROW | {"color": "#ff00"}], "cannot reshape"),
        ([ROW | {"color": "red"}], "fromhex"),
        ([ROW, ROW], "its ids are [0, 0]"),
        ([ROW | {"id": 1}], "its ids are [1]"),
        ([], "its ids are []"),
        ([ROW | {"id": i, "raw_id": 0} for i in range(255)], "at most 254 classes"),
        ([ROW | {"raw_id": 256}], "256 is not among 0 to 255"),
        ([ROW | {"raw_id": "0"}], "'0' is not among 0 to 255"),
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
    with pytest.raises(
        InputError,
        match=r"absent\.json cannot be read \(No such file[^\[]*\); expected {\"classes\":",
    ):
        load_class_table(tmp_path / "absent.json")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown dataset 'ade2ok': did you mean 'ade20k'"):
        get_dataset("ade2ok")
    with pytest.raises(InputError, match="scenes of synthetic are generated: they have no files"):
        get_dataset(SYNTHETIC)
    with pytest.raises(InputError, match=r"no file .*/pet\.json: .*\n.*\"classes\".*\n.*demo"):
        get_dataset("pet.json")
    assert tuple(DATASETS) == PUBLISHED
    with pytest.raises(InputError, match=r"unknown dataset 'x'\. Known: ade20k, camvid"):
        get_dataset("x")
    with pytest.raises(InputError, match=r"unknown class table .*'citiscapes': did you mean"):
        load_class_table("citiscapes")
    with pytest.raises(InputError, match="split of ade20k 'train': did you mean 'training'"):
        get_dataset("ade20k").check_split("train")
    with pytest.raises(
        InputError, match="layout of cityscapes 'labelIDs': did you mean 'labelIds'"
    ):
        get_dataset("cityscapes").layout("labelIDs")


# A user's own dataset

PETS = {
    "classes": [
        {"id": 0, "name": "cat", "color": "#ff0080", "raw_id": [10, 11]},
        {"id": 1, "name": "dog", "color": "#000001", "raw_id": 20},
    ],
    "ignore": [0, 255],
    "images": "{split}/photos",
    "image_suffix": ".jpeg",
    "splits": {"training": "train", "validation": "test"},
}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_own_dataset_says_what_its_files_mean(tmp_path: Path) -> None:
    spec = get_dataset(str(write_json(tmp_path / "pets.json", PETS)))
    (layout,) = spec.layouts
    assert (spec.name, spec.class_table.class_names) == ("pets", ("cat", "dog"))
    assert layout.describe("validation") == ("test/photos/**/*.jpeg with annotations/test/**/*.png")
    values = {value: int(layout.lookup[value]) for value in (0, 1, 10, 11, 20, 255)}
    assert values == {0: 255, 1: UNKNOWN, 10: 0, 11: 0, 20: 1, 255: 255}


def test_own_dataset_needs_no_more_than_its_classes(tmp_path: Path) -> None:
    spec = load_dataset(write_json(tmp_path / "pets.json", {"classes": [ROW]}))
    assert [layout.describe("training") for layout in spec.layouts] == [
        f"images/training/**/*{suffix} with annotations/training/**/*.png"
        for suffix in (".jpg", ".png", ".jpeg")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sufix": ".jpg"}, "unknown key in .*: did you mean 'image_suffix'"),
        ({"ignore": 0}, r"ignore is 0; write it as \[255\]"),
        ({"ignore": [20]}, r"the stored values \[20\] have two meanings"),
        ({"splits": {"train": "a"}}, "splits is .*; give a folder for training and validation"),
        ({"splits": {"training": None, "validation": "b"}}, "splits is .*; give a folder"),
        ({"ignore": [-5]}, r"ignore: \[-5\] is not among 0 to 255; write integers"),
        ({"ignore": [300]}, r"ignore: \[300\] is not among"),
        ({"ignore": ["255"]}, r"ignore: \['255'\] is not among"),
        ({"ignore": [[1]]}, r"ignore: \[\[1\]\] is not among"),
        ({"images": "{foo}/x"}, "images is '{foo}/x'; the only braces in it can be {split}"),
        ({"labels": "{split"}, "labels is '{split'; the only braces"),
    ],
)
def test_a_wrong_description_of_own_files(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write_json(tmp_path / "pets.json", PETS | change)
    with pytest.raises(InputError, match=message) as caught:
        get_dataset(str(path))
    assert str(path) in str(caught.value)
