"""A user's own dataset: a class table in JSON, with what its files are called and hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from segret_jax.data import class_table as tables
from segret_jax.data.class_table import IGNORE, ClassTable
from segret_jax.data.layouts import SPLITS, DatasetSpec, Layout
from segret_jax.errors import InputError, unknown_name

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
_OWN_FILES: dict[str, Any] = {  # the keys that describe the files, and their defaults
    "images": "images/{split}",
    "image_suffix": "",  # the one of IMAGE_SUFFIXES that most images have
    "labels": "annotations/{split}",
    "label_suffix": ".png",
    "ignore": [IGNORE],  # stored values without a class, unless they are a class's
    "splits": {"training": "training", "validation": "validation"},
}


def load_dataset(path: Path) -> DatasetSpec:
    """Read a user's own dataset from a JSON file.

    The file holds the keys of a class table, whose `raw_id` is here the value stored in the label
    files (or a list of them), and may hold those of `_OWN_FILES`. If `ignore` is given, it lists
    all ignored values: without 255 in it, 255 is not ignored.

    Raises:
        InputError: The file is unreadable, has an unknown key or a wrong value.
    """
    content, where = tables.read_json(path)
    table = tables.parse_class_table(content, where, default_name=path.stem)
    for key in content:
        if key not in (*tables.TABLE_KEYS, *_OWN_FILES):
            raise unknown_name(f"key in {where}", key, (*tables.TABLE_KEYS, *_OWN_FILES))
    if content.get("ignore_label", IGNORE) != IGNORE:
        value = content["ignore_label"]
        raise InputError(f'{where}: ignore_label is {value!r}; write it as "ignore": [{value!r}]')
    files = _own_files(content, where)
    suffixes = [files.pop("image_suffix")] if files["image_suffix"] else IMAGE_SUFFIXES
    void = files.pop("ignore")
    if "ignore" not in content:  # a mask of 0 and 255 needs no more than its classes
        void = tuple(value for value in void if value not in table.raw_to_class())
    meaning = {"name": "own", "lookup": _own_lookup(table, void, where), "void": void}
    return DatasetSpec(
        name=table.name,
        class_table=table,
        layouts=tuple(Layout(**files | meaning | {"image_suffix": end}) for end in suffixes),
        download_hint=f"files like these, or describe yours in {where}",
        json_file=where,
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
    if set(splits) != set(SPLITS) or not all(isinstance(name, str) for name in splits.values()):
        raise InputError(f"{where}: splits is {splits}; give a folder for training and validation")
    try:
        return files | {"ignore": tables.stored_values(files["ignore"])}
    except ValueError as error:
        raise InputError(f"{where}: ignore: {error}; write integers, such as [255]") from error


def _own_lookup(table: ClassTable, void: tuple[int, ...], where: str) -> UInt8[np.ndarray, "256"]:
    stored = [*set(void), *(value for values in table.raw_ids for value in set(values))]
    twice = sorted({value for value in stored if stored.count(value) > 1})
    if twice:
        raise InputError(
            f"{where}: the stored values {twice} have two meanings (raw_id, ignore); a value "
            "belongs to one class or to ignore"
        )
    return tables.label_lookup(dict.fromkeys(void, IGNORE) | table.raw_to_class())
