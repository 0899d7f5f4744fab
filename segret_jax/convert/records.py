"""Objects around the tensors of a pickle, as inert data: nothing is imported and nothing is called.

Checkpoints hold more than tensors: configs, histories of losses, paths, dates. Objects of packages
outside Python and PyTorch (mmengine's `HistoryBuffer`, a user's own config class) become `Record`s
whatever they are. Of Python's own names only those of `RECORDS` do: others are how attacks begin.

An argument may be any earlier value of the pickle, again and again. So no function copies one that
can be long, or a file of some kB could fill the memory.
"""

import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MAX_KEY_PARTS = 8  # of a tuple that is a key in a dict
MAX_NAME = 200  # characters of "module.attribute"
NEVER_RECORDS = {*sys.stdlib_module_names, "torch", "functorch", "segret_jax"}


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names: only its name."""

    full: str


@dataclass(slots=True)
class Record:
    """An object of no use here, as inert data: the name, the arguments and the state it was given.

    `state` is whatever the pickle holds; attributes, or the items of a dict, are a dict.
    """

    name: str
    args: tuple
    state: Any = None


def canonical(full: str) -> str:
    """Return "module.attribute" as Python 3 names it; protocols up to 2 write Python 2's names."""
    module, _, attribute = full.rpartition(".")
    module, attribute = NAME_MAPPING.get((module, attribute), (module, attribute))
    return f"{IMPORT_MAPPING.get(module, module)}.{attribute}"


def is_foreign(full: str) -> bool:
    """Return whether a name belongs to a package other than Python, PyTorch and this one."""
    parts = full.split(".") if len(full) <= MAX_NAME else []
    return (
        len(parts) > 1
        and all(part.isidentifier() for part in parts)
        and parts[0] not in NEVER_RECORDS
    )


def is_plain_key(key: Any) -> bool:
    return type(key) in (str, float, bool, type(None)) or (type(key) is int and abs(key) < 2**63)


def append_items(target: Any, items: list[Any]) -> None:
    """Put items into what must be a list; those of another class's list are of no use here."""
    if isinstance(target, Record):
        return
    if type(target) is not list:
        raise TypeError(f"items for a {type(target).__name__}")
    target.extend(items)


def set_items(mapping: Any, pairs: Any) -> None:
    """Put pairs into what must be a dict, with keys that are plain or short tuples of such."""
    if isinstance(mapping, Record):
        mapping.state = {} if mapping.state is None else mapping.state
        mapping = mapping.state
    if type(mapping) is not dict:
        raise TypeError(f"items for a {type(mapping).__name__}")
    for key, value in pairs:
        # Nothing deep or long is hashed: it overflows Python's own stack, or never ends.
        parts = key if type(key) is tuple else (key,)
        if len(parts) > MAX_KEY_PARTS or not all(map(is_plain_key, parts)):
            raise TypeError(f"a {type(key).__name__} as key")
        mapping[key] = value


def set_state(target: Any, state: Any) -> None:
    """Give a record its state; attributes of a dict, such as `_metadata`, are of no use here."""
    if isinstance(target, Record):
        target.state = state if target.state is None else target.state
    elif type(target) is not dict:
        raise TypeError(f"a state for a {type(target).__name__}")


def _mapping(pairs: Any = None) -> dict:
    if type(pairs) is dict:
        return pairs
    mapping: dict = {}
    if pairs is not None:
        set_items(mapping, pairs)
        pairs.clear()  # they moved, so that the next dict of the same list is no copy
    return mapping


def _default_dict(_factory: Any = None, pairs: Any = None) -> dict:
    return _mapping(pairs)


def _items(items: Any = (), *_: Any) -> Any:
    return items


def _deque(items: Any = (), *_: Any) -> list:
    if items not in ((), []):  # its items follow, by APPENDS
        raise TypeError("a deque with items")
    return []


def _encode(text: Any, encoding: Any) -> Record:
    """_codecs.encode, which is how protocol 2 writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return Record("bytes", (text,))


def _path(*parts: Any) -> Record:
    if not all(type(part) is str for part in parts):
        raise TypeError("a path of other parts than text")
    return Record("pathlib.PosixPath", parts)


def _scalar(dtype: Record, data: bytes | Record) -> Any:
    """numpy's scalar, such as the best accuracy so far, as a plain number; text as a record."""
    code = dtype.args[0]
    if not re.fullmatch("[iuf][1248]|b1", code) or dtype.state[1] == ">":
        return Record("numpy.generic", (dtype, data))
    raw = data.args[0][:8].encode("latin1") if isinstance(data, Record) else data
    return np.frombuffer(raw, code, count=1)[0].item()


def _record(name: str) -> Callable[..., Record]:
    return lambda *args: Record(name, args)


PLAIN = (  # classes of Python's own that are kept as records
    "argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal",
    "fractions.Fraction", "re._compile", "builtins.complex", "builtins.slice", "builtins.range",
    "builtins.bytearray", *(
        f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")
    ),
)  # fmt: skip
RECORDS: dict[str, Callable[..., Any]] = {
    **{name: _record(name) for name in PLAIN},
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,  # milestones of a learning-rate schedule
    "collections.defaultdict": _default_dict,
    "collections.deque": _deque,
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "builtins.bytes": lambda: Record("bytes", ("",)),
    "_codecs.encode": _encode,
    "yacs.config.CfgNode": _mapping,
    **{
        f"numpy.{core}.multiarray.{name}": made
        for core in ("core", "_core")  # before and since numpy 2
        for name, made in (("scalar", _scalar), ("_reconstruct", _record("numpy.ndarray")))
    },
    **{
        f"{module}.{name}": _path
        for module in ("pathlib", "pathlib._local")
        for name in (
            "PosixPath", "PurePosixPath", "Path", "PurePath", "WindowsPath", "PureWindowsPath",
        )
    },
}  # fmt: skip
TYPES = {  # mentioned, as the factory of a defaultdict, and never called
    f"builtins.{name}"
    for name in ("bool", "dict", "float", "int", "list", "object", "set", "str", "tuple")
}


def read_array(value: Any, max_values: int) -> np.ndarray | None:
    """Return the numbers of a record of a NumPy array; None for another or one that is longer."""
    match value:
        case Record(
            name="numpy.ndarray",
            state=(
                _,
                tuple() as shape,
                Record(args=(str() as code, *_)),
                bool() as fortran,
                bytes() | Record(name="bytes", args=(str(),)) as data,
            ),
        ) if re.fullmatch("[iuf][1248]", code) and len(shape) <= 4:
            limit = 8 * max_values
            raw = data if isinstance(data, bytes) else data.args[0][: limit + 1].encode("latin1")
            if len(raw) <= limit:
                order: Literal["F", "C"] = "F" if fortran else "C"
                return np.frombuffer(raw, code).reshape(shape, order=order)
    return None
