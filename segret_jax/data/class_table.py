"""Class tables: names, colors and original ids of a dataset's classes, and their lookup tables."""

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from segret_jax.data.lfs import refuse_pointer
from segret_jax.data.names import TABLE_EXAMPLE
from segret_jax.errors import InputError, unknown_name
from segret_jax.files import read_bytes

IGNORE = 255
"""Label of a pixel that counts neither in the loss nor in the metrics."""

UNKNOWN = 254
"""Entry of a lookup table for a stored value without meaning, which `decode.map_label` rejects.
Class ids therefore end at 253."""

MAX_CLASSES = 2**16
"""Largest number of classes of a classifier; 8-bit label maps bound those of segmentation."""

STREET_SCENES = ("camvid", "cityscapes", "synthetic")

_FOLDER = Path(__file__).with_name("class_tables")
CLASS_TABLES = tuple(sorted(file.stem for file in _FOLDER.glob("*.json")))
_TABLE_FORM = (
    f"expected {TABLE_EXAMPLE} with ids 0, 1, 2, ... in order and at most {UNKNOWN} classes"
)
TABLE_KEYS = ("name", "description", "ignore_label", "classes")


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassTable:
    """Names and RGB colors of the classes, in the order of their ids.

    Attributes:
        name: The name of the table.
        class_names: One name per class, all different.
        colors: The RGB colors, uint8 [classes, 3].
        raw_ids: For each class its ids in the dataset's original label list, several if they are
            merged into one class.
    """

    name: str
    class_names: tuple[str, ...]
    colors: UInt8[np.ndarray, "k 3"]
    raw_ids: tuple[tuple[int, ...], ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, without the ignored label."""
        return len(self.class_names)

    @property
    def summary(self) -> str:
        """Number and kind of the classes, such as "11 street classes"."""
        kind = "street " * (self.name in STREET_SCENES)
        return f"{self.num_classes} {kind}classes"

    def raw_to_class(self) -> dict[int, int]:
        """Return {original id: class id}."""
        return {raw: i for i, raws in enumerate(self.raw_ids) for raw in raws}

    def extended(self, count: int) -> "ClassTable":
        """Return the table with classes that no label has added, up to `count` classes."""
        added = generic_table(self.name, count)
        return ClassTable(
            name=self.name,
            class_names=self.class_names + added.class_names[self.num_classes :],
            colors=np.concatenate([self.colors, added.colors[self.num_classes :]]),
            raw_ids=self.raw_ids + added.raw_ids[self.num_classes :],
        )

    def extends(self, other: "ClassTable") -> bool:
        """Return whether this is `other`, or that with classes added that no label has."""
        count = other.num_classes
        return self.class_names[:count] == other.class_names and not any(self.raw_ids[count:])

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that `parse_class_table` reads."""
        rows = zip(self.class_names, self.colors, self.raw_ids, strict=True)
        classes = [
            {"id": i, "name": name, "color": "#" + color.tobytes().hex(), "raw_id": list(raws)}
            for i, (name, color, raws) in enumerate(rows)
        ]
        return {"name": self.name, "classes": classes}


def generic_table(name: str, count: int) -> ClassTable:
    """Return a table of classes "class 0", "class 1", …, which no label has."""
    golden = (5**0.5 - 1) / 2  # steps of it around the circle of hues stay far from each other
    colors = [colorsys.hsv_to_rgb(i * golden % 1, 0.65, 0.9 - 0.3 * (i % 2)) for i in range(count)]
    return ClassTable(
        name=name,
        class_names=tuple(f"class {i}" for i in range(count)),
        colors=np.rint(255 * np.array(colors)).astype(np.uint8),
        raw_ids=((),) * count,
    )


def load_class_table(name_or_path: str | Path) -> ClassTable:
    """Load a class table.

    Args:
        name_or_path: One of `CLASS_TABLES`, or the path of a JSON file.

    Raises:
        InputError: The name is unknown, the file is unreadable or no class table.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in CLASS_TABLES:
        path = _FOLDER / f"{name}.json"
    elif path.suffix != ".json" and len(path.parts) == 1:
        raise unknown_name("class table (your own must end in .json)", name, CLASS_TABLES)
    return parse_class_table(*read_json(path), default_name=path.stem)


def read_json(path: Path) -> tuple[Any, str]:
    """Return a JSON file's content and its path for messages; InputError if it cannot be read."""
    where = str(path.expanduser().absolute())
    content = read_bytes(path.expanduser().absolute(), f"; {_TABLE_FORM}")
    try:
        refuse_pointer(content, where)
        return json.loads(content), where  # of bytes: UTF-8, -16 or -32, by the byte-order mark
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is no class table ({error!r}); {_TABLE_FORM}") from error


def parse_class_table(
    content: Any, where: str, *, default_name: str, most: int = UNKNOWN
) -> ClassTable:
    """Build a class table from the content of a JSON file.

    Args:
        content: The parsed JSON.
        where: The name of the file in errors.
        default_name: The name of a table that gives none.
        most: The largest number of classes.

    Raises:
        InputError: The content is no class table.
    """
    try:
        rows = content["classes"]
        colors = [list(bytes.fromhex(row["color"].removeprefix("#"))) for row in rows]
        table = ClassTable(
            name=str(content.get("name", default_name)),
            class_names=tuple(str(row["name"]) for row in rows),
            colors=np.array(colors, np.uint8).reshape(len(rows), 3),
            raw_ids=tuple(stored_values(row.get("raw_id", row["id"])) for row in rows),
        )
        ids = [row["id"] for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} is no class table ({error!r}); {_TABLE_FORM}") from error
    if ids != list(range(len(ids))) or not 1 <= len(ids) <= most:
        raise InputError(f"{where} is no class table (its ids are {ids}); {_TABLE_FORM}")
    if len(set(table.class_names)) < len(ids):
        raise InputError(f"{where} names a class twice; names tell classes apart in all results")
    table.colors.setflags(write=False)
    return table


def stored_values(value: Any) -> tuple[int, ...]:
    """Read one stored label value or a list of several; ValueError if not integers 0 to 255."""
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not all(type(i) is int and 0 <= i <= IGNORE for i in ids):
        raise ValueError(f"{value!r} is not among 0 to {IGNORE}")
    return ids


def pixels_of_ids(label: UInt8[np.ndarray, "h w"]) -> Int[np.ndarray, "256"]:
    """Return the number of pixels of each id."""
    counts = np.zeros(256, np.int64)
    for row in label:  # at once it would take 8 bytes per pixel
        counts += np.bincount(row, minlength=256)
    return counts


def label_lookup(raw_to_class: Mapping[int, int]) -> UInt8[np.ndarray, "256"]:
    """Return the table from stored value to class id or 255; values not named are `UNKNOWN`."""
    lookup = np.full(256, UNKNOWN, np.uint8)
    for raw, class_id in raw_to_class.items():
        lookup[raw] = class_id
    lookup.setflags(write=False)
    return lookup
