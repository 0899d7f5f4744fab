"""The classes that a file names: of mmsegmentation, of Hugging Face, or beside the weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from segret_jax.convert.metadata import shorten
from segret_jax.convert.records import read_array
from segret_jax.data.class_table import STRAY

NAMES, COLORS = ("CLASSES", "classes", "class_names"), ("PALETTE", "palette")
DEFAULT_LABEL = "LABEL_{}"  # transformers' name of class i where nobody gave one


@dataclass(frozen=True, slots=True, kw_only=True)
class FileClasses:
    """Names of classes in the order of their ids, printable, and where in the file they stand.

    `names` ends after `STRAY` of them, `count` is of all. `colors` is uint8 [count, 3]; None where
    the file has none that fit.
    """

    names: tuple[str, ...]
    count: int
    colors: np.ndarray | None
    source: str


def find_classes(content: dict[Any, Any]) -> FileClasses | None:
    """Return the classes that the dicts of a checkpoint name; None if they name none."""
    for where, found in _places(content):
        for key in NAMES:
            if names := _names(found.get(key)):
                palette = next((found[k] for k in COLORS if k in found), None)
                return FileClasses(
                    names=tuple(shorten(name) for name in islice(names, STRAY)),
                    count=len(names),
                    colors=_colors(palette, len(names)),
                    source=f"{where}{key}",
                )
    return None


def find_labels(config: Mapping[str, Any]) -> FileClasses | None:
    """Return the classes of `id2label` in Hugging Face's config.json; None without real names."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or not 0 < len(labels) <= STRAY:
        return None
    names = [labels.get(str(i)) for i in range(len(labels))]
    if not _names(names) or names == [DEFAULT_LABEL.format(i) for i in range(len(names))]:
        return None
    return FileClasses(
        names=tuple(shorten(str(name)) for name in names),
        count=len(names),
        colors=None,
        source="id2label of config.json",
    )


def _places(content: dict[Any, Any]) -> Iterator[tuple[str, dict]]:
    """Yield where classes may stand: mmengine's, mmcv's, and beside the state dict."""
    meta = content.get("meta")
    if isinstance(meta, dict):
        if isinstance(meta.get("dataset_meta"), dict):
            yield "meta.dataset_meta.", meta["dataset_meta"]
        yield "meta.", meta
    yield "", content


def _names(value: Any) -> list[str] | tuple[str, ...]:
    """Return `value` if it is a list of names, else an empty one."""
    is_names = isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)
    return value if is_names else ()


def _colors(palette: Any, count: int) -> np.ndarray | None:
    """Return a palette as uint8 [count, 3]; None if it is another."""
    if count > STRAY:
        return None
    if isinstance(palette, list | tuple) and len(palette) == count:
        rows = [row for row in palette if isinstance(row, list | tuple) and len(row) == 3]
        values = [v for row in rows for v in row if type(v) is int and 0 <= v <= 255]
        return np.array(values, np.uint8).reshape(count, 3) if len(values) == 3 * count else None
    array = read_array(palette, 3 * count)
    if array is None or array.shape != (count, 3) or not ((array >= 0) & (array <= 255)).all():
        return None
    return array.astype(np.uint8)
