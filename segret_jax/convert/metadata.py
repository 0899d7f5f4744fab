"""The metadata of a checkpoint as plain values: what JSON can hold, bounded in size and depth.

A pickle of a few kB can refer to one list a million times, so nothing is followed without end.
"""

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from segret_jax.convert.records import Name, Record
from segret_jax.convert.torch_rebuild import Tensor
from segret_jax.errors import printable

MAX_ITEMS, MAX_TEXT, MAX_DEPTH = 256, 300, 2  # of one container, of one text, below the top
MAX_VALUES = 2**12  # in all


def plain_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metadata as what JSON holds; what is long, deep or no plain data is only described."""
    summary = _Summary()
    items = islice(metadata.items(), MAX_ITEMS)
    plain = {_key(key): summary.plain(value, MAX_DEPTH) for key, value in items}
    if len(metadata) > MAX_ITEMS:
        plain["…"] = f"{len(metadata) - MAX_ITEMS} more"
    return plain


def shorten(text: str) -> str:
    """Return the beginning of `text`, in one line that any terminal can print."""
    return printable(text[:MAX_TEXT]) + "…" * (len(text) > MAX_TEXT)


class _Summary:
    """Plain values, until there are `MAX_VALUES`; containers after that are only described."""

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def plain(self, value: Any, depth: int) -> Any:
        match value:
            case Record(state=dict() as state) | Record(args=(dict() as state,)):
                return self.plain(state, depth)
            case dict() | list() | tuple() if depth and len(value) <= min(MAX_ITEMS, self.left):
                self.left -= len(value)
                if isinstance(value, dict):
                    return {_key(k): self.plain(v, depth - 1) for k, v in value.items()}
                return [self.plain(v, depth - 1) for v in value]
            case _:
                return _single(value)


def _single(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case float():
            return value if math.isfinite(value) else str(value)  # JSON has no NaN
        case int() if abs(value) < 2**63:
            return value
        case str():
            return shorten(value)
        case Name(full=name):
            return name
        case Record(name="pathlib.PosixPath", args=parts):
            return shorten(str(PurePosixPath(*(part[:MAX_TEXT] for part in parts))))
        case Record(name=name):
            return name
        case Tensor():
            return shorten(f"tensor {value.storage.dtype} {list(value.shape)}")
    size = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"{type(value).__name__}{size}"


def _key(key: Any) -> str:
    return shorten(str(key) if type(key) is not tuple else ", ".join(map(_key, key)))
