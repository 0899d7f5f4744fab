"""Classes that a file names in the keys of mmsegmentation, mmengine or Hugging Face."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segret_jax.convert.records import read_array
from segret_jax.data.class_table import UNKNOWN
from segret_jax.errors import shorten

NAMES, COLORS = ("CLASSES", "classes", "class_names"), ("PALETTE", "palette")
DEFAULT_LABEL = "LABEL_{}"  # transformers' name of class i where nobody gave one


@dataclass(frozen=True, slots=True, kw_only=True)
class FileClasses:
    """The classes that a file names.

    Attributes:
        names: The names in the order of their ids, printable, at most `UNKNOWN` of them.
        count: The number of all names.
        colors: The colors, uint8 [count, 3]; None where the file has none that fit.
        source: The key under which the file has the names.
    """

    names: tuple[str, ...]
    count: int
    colors: np.ndarray | None
    source: str


def find_classes(content: dict[Any, Any]) -> FileClasses | None:
    """Return the classes that the dicts of a checkpoint name; None if they name none."""
    meta = content.get("meta")  # of mmcv, and in it that of mmengine
    inner = meta.get("dataset_meta") if isinstance(meta, dict) else None
    found_at: dict[str, Any] = {"meta.dataset_meta.": inner, "meta.": meta, "": content}
    for where, found in found_at.items():
        for key in NAMES if isinstance(found, dict) else ():
            if names := _names(found.get(key)):
                palette = next((found[k] for k in COLORS if k in found), None)
                return _classes(names, f"{where}{key}", palette)
    return None


def find_labels(config: Mapping[str, Any]) -> FileClasses | None:
    """Return the classes of `id2label` in Hugging Face's config.json; None without real names."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or len(labels) > UNKNOWN:
        return None
    names = _names([labels.get(str(i)) for i in range(len(labels))])
    if names == [DEFAULT_LABEL.format(i) for i in range(len(names))]:  # or there is none
        return None
    return _classes(names, "id2label of config.json")


def _names(value: Any) -> list[str] | tuple[str, ...]:
    """Return `value` if it is a list of names, else an empty one."""
    is_names = isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)
    return value if is_names else []


def _classes(names: list[str] | tuple[str, ...], source: str, palette: Any = None) -> FileClasses:
    return FileClasses(
        names=tuple(map(shorten, names[:UNKNOWN])),
        count=len(names),
        colors=_colors(palette, len(names)),
        source=source,
    )


def _colors(palette: Any, count: int) -> np.ndarray | None:
    """Return a palette as uint8 [count, 3]; None if it is another."""
    if count > UNKNOWN:
        return None
    if isinstance(palette, list | tuple) and len(palette) == count:
        rows = [row for row in palette if isinstance(row, list | tuple) and len(row) == 3]
        values = [v for row in rows for v in row if type(v) is int and 0 <= v <= 255]
        return np.array(values, np.uint8).reshape(count, 3) if len(values) == 3 * count else None
    array = read_array(palette, 3 * count)
    if array is None or array.shape != (count, 3) or not ((array >= 0) & (array <= 255)).all():
        return None
    return array.astype(np.uint8)
