"""Which classes the outputs of a converted model mean: a PyTorch file does not say."""

import colorsys

import numpy as np

from segret_jax.convert.family import Family
from segret_jax.data.class_table import ClassTable, load_class_table
from segret_jax.data.datasets import SYNTHETIC, get_dataset
from segret_jax.errors import InputError

BY_COUNT = {150: "ade20k", 19: "cityscapes", 171: "coco_stuff10k", 11: "camvid"}


def choose_classes(family: Family, dataset: str, *, given: bool) -> tuple[str, ClassTable]:
    """Return the name of the dataset that a model is for, and its classes.

    If `given`, it is `dataset`: InputError if there is none of that name, it has another number of
    classes, or the model is a classifier. Otherwise the number tells; if it is that of no known
    dataset, the classes get generic names.
    """
    count, is_classifier = family.num_classes, family.model.task == "classification"
    if not given:
        if is_classifier:
            return dataset, _generic("imagenet", count, label_ids=False)
        if count not in BY_COUNT:
            return dataset, _generic("unnamed", count, label_ids=True)
        dataset = BY_COUNT[count]
    synthetic = dataset == SYNTHETIC
    table = load_class_table(dataset) if synthetic else get_dataset(dataset).class_table
    if is_classifier:
        raise InputError(
            f"is a classifier of {count} ImageNet classes, but data.dataset is set to {dataset!r}; "
            "leave data.dataset out"
        )
    if table.num_classes != count:
        raise InputError(
            f"data.dataset is set to {dataset!r} with {table.num_classes} classes, but the file "
            f"holds a model of {count}; leave it out, or give your own FILE.json"
        )
    return dataset, table


def _generic(name: str, count: int, *, label_ids: bool) -> ClassTable:
    golden = (5**0.5 - 1) / 2  # steps of it around the circle of hues stay far from each other
    colors = [colorsys.hsv_to_rgb(i * golden % 1, 0.65, 0.9 - 0.3 * (i % 2)) for i in range(count)]
    return ClassTable(
        name=name,
        class_names=tuple(f"class {i}" for i in range(count)),
        colors=np.rint(255 * np.array(colors)).astype(np.uint8),
        raw_ids=tuple((i,) if label_ids else () for i in range(count)),
    )
