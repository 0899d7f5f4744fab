"""The metadata of a checkpoint as JSON values, bounded in size and depth.

The bounds are needed because a pickle of a few kB can refer to one list a million times.
"""

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from segret_jax.convert.records import Name, Record, is_plain
from segret_jax.convert.torch_rebuild import Tensor
from segret_jax.errors import MAX_TEXT, shorten

MAX_ITEMS, MAX_DEPTH = 256, 2  # of one container, below the top
MAX_VALUES = 2**12  # in all; containers after that are only described


def plain_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metadata as JSON values; long or deep values and other objects are only described."""
    left = MAX_VALUES

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        match value:
            case Record(state=dict() as items) | Record(args=(dict() as items,)):
                return plain(items, depth)
            case dict() | list() | tuple() if depth and len(value) <= min(MAX_ITEMS, left):
                left -= len(value)
                if isinstance(value, dict):
                    return {_key(k): plain(v, depth - 1) for k, v in value.items()}
                return [plain(v, depth - 1) for v in value]
        return _single(value)

    found = {_key(k): plain(v, MAX_DEPTH) for k, v in islice(metadata.items(), MAX_ITEMS)}
    if len(metadata) > MAX_ITEMS:
        found["…"] = f"{len(metadata) - MAX_ITEMS} more"
    return found


def _single(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return str(value)  # JSON has no NaN
        case str():
            return shorten(value)
        case Record(name=name, args=parts) if name.startswith("pathlib."):
            return shorten(str(PurePosixPath(*(part[:MAX_TEXT] for part in parts))))
        case Name(name=name) | Record(name=name):
            return name
        case Tensor():
            return shorten(f"tensor {value.storage.dtype} {list(value.shape)}")
    if is_plain(value):
        return value
    size = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"{type(value).__name__}{size}"


def _key(key: Any) -> str:
    return shorten(str(key) if type(key) is not tuple else ", ".join(map(_key, key)))
