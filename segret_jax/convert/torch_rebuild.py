"""What the names in a PyTorch file's pickle stand for, by a closed list.

`REBUILD` holds the few functions and classes that the tensors and the usual metadata of a
checkpoint need, each with a function of this file in its place. Any other name is refused.

An argument may be any earlier value of the pickle, again and again. So no function copies one that
can be long, or a file of some kB could fill the memory.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from segret_jax.errors import InputError

RESAVE = (
    "if you trust the file, load it in PyTorch and save model.state_dict() alone, or save its "
    "tensors as .safetensors"
)
DTYPES = {
    "torch.float64": np.dtype("<f8"), "torch.float32": np.dtype("<f4"),
    "torch.float16": np.dtype("<f2"), "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
    "torch.int64": np.dtype("<i8"), "torch.int32": np.dtype("<i4"),
    "torch.int16": np.dtype("<i2"), "torch.int8": np.dtype("i1"),
    "torch.uint64": np.dtype("<u8"), "torch.uint32": np.dtype("<u4"),
    "torch.uint16": np.dtype("<u2"), "torch.uint8": np.dtype("u1"), "torch.bool": np.dtype("?"),
}  # fmt: skip
MAX_AXES = 64  # NumPy's; PyTorch has as many
MAX_KEY_PARTS = 8  # of a tuple that is a key in a dict
STORAGES = {
    "torch.DoubleStorage": "torch.float64", "torch.FloatStorage": "torch.float32",
    "torch.HalfStorage": "torch.float16", "torch.BFloat16Storage": "torch.bfloat16",
    "torch.LongStorage": "torch.int64", "torch.IntStorage": "torch.int32",
    "torch.ShortStorage": "torch.int16", "torch.CharStorage": "torch.int8",
    "torch.ByteStorage": "torch.uint8", "torch.BoolStorage": "torch.bool",
    "torch.storage.UntypedStorage": "torch.uint8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names: only its name."""

    full: str


@dataclass(slots=True)
class Record:
    """An object of no use here, as inert data: the name, the arguments and the state it was given.

    `state` is whatever the pickle holds; a Namespace's attributes are a dict.
    """

    name: str
    args: tuple
    state: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of `numel` numbers that the file holds under `key`."""

    key: str
    dtype: np.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, not read yet; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, data: bytes) -> np.ndarray:
        """Return the view of its storage's bytes: read-only, not a copy."""
        dtype = self.storage.dtype
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        # The stride of an axis of length 1 is arbitrary in PyTorch, and may overflow in bytes.
        strides = [
            s * dtype.itemsize if n > 1 else 0
            for n, s in zip(self.shape, self.strides, strict=True)
        ]
        return np.ndarray(self.shape, dtype, data, self.offset * dtype.itemsize, strides)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _brief(sizes: tuple[int, ...]) -> str:
    return str(sizes) if len(sizes) <= 6 else f"({len(sizes)} axes)"


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2; rest: requires_grad, hooks, conjugate and negative bits."""
    if not (isinstance(storage, Storage) and type(shape) is type(strides) is tuple):
        raise InputError("holds a tensor with arguments of wrong types; download the file again")
    if not len(shape) == len(strides) <= MAX_AXES or not all(
        map(_is_size, (offset, *shape, *strides))
    ):
        raise InputError("holds a tensor with impossible sizes; download the file again")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise InputError(
            f"holds a tensor of shape {_brief(shape)}, strides {_brief(strides)} and offset "
            f"{offset} that leaves its storage of {storage.numel} elements; the file is damaged, "
            "download it again"
        )
    if math.prod(shape) > storage.numel:
        raise InputError(
            f"holds an expanded tensor of shape {_brief(shape)} in a storage of {storage.numel} "
            "elements; save a .contiguous() copy of it"
        )
    if len(rest) > 2 and rest[2]:
        raise InputError(f"holds a tensor that is stored conjugate or negated; {RESAVE}")
    return Tensor(storage, offset, shape, strides)


def _tensor_v3(storage: Storage, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3: its storage is bytes; rest[2] names the dtype."""
    dtype = DTYPES[rest[2].full]
    typed = replace(storage, dtype=dtype, numel=storage.numel // dtype.itemsize)
    return _tensor(typed, offset, shape, strides, *rest[:2], *rest[3:])


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _is_key(key: Any) -> bool:
    return type(key) in (str, float, bool, type(None)) or (type(key) is int and abs(key) < 2**63)


def set_items(mapping: Any, pairs: Any) -> None:
    """Put pairs into what must be a dict, with keys that are plain or short tuples of such."""
    if type(mapping) is not dict:
        raise TypeError(f"items for a {type(mapping).__name__}")
    for key, value in pairs:
        # Nothing deep or long is hashed: it overflows Python's own stack, or never ends.
        parts = key if type(key) is tuple else (key,)
        if len(parts) > MAX_KEY_PARTS or not all(map(_is_key, parts)):
            raise TypeError(f"a {type(key).__name__} as key")
        mapping[key] = value


def _mapping(pairs: Any = None) -> dict:
    if type(pairs) is dict:
        return pairs
    mapping: dict = {}
    if pairs is not None:
        set_items(mapping, pairs)
        pairs.clear()  # they moved, so that the next dict of the same list is no copy
    return mapping


def _device(kind: Any, index: Any = 0) -> str:
    if type(kind) is not str or len(kind) > 20 or not _is_size(index):
        raise TypeError("a device of wrong types")
    return f"{kind}:{index}"


def _encode(text: Any, encoding: Any) -> Record:
    """_codecs.encode, which is how protocol 2 writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return Record("bytes", (text,))


def _path(*parts: Any) -> Record:
    if not all(type(part) is str for part in parts):
        raise TypeError("a path of other parts than text")
    return Record("pathlib.PosixPath", parts)


def _scalar(dtype: Record, data: bytes | Record) -> int | float | bool:
    """numpy's scalar, such as the best accuracy so far, as a plain number."""
    code = dtype.args[0]
    if not re.fullmatch("[iuf][1248]|b1", code) or dtype.state[1] == ">":
        raise ValueError(f"a numpy scalar of type {code[:10]!r}")
    raw = data.args[0][:8].encode("latin1") if isinstance(data, Record) else data
    return np.frombuffer(raw, code, count=1)[0].item()


def _record(name: str) -> Callable[..., Record]:
    return lambda *args: Record(name, args)


REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda size=(): size,
    "torch.device": _device,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,  # milestones of a learning-rate schedule
    "yacs.config.CfgNode": _mapping,
    "builtins.set": lambda items=(): items,
    "_codecs.encode": _encode,
    "numpy.dtype": _record("numpy.dtype"),
    "argparse.Namespace": _record("argparse.Namespace"),
    **{
        f"numpy.{core}.multiarray.{name}": made
        for core in ("core", "_core")  # before and since numpy 2
        for name, made in (("scalar", _scalar), ("_reconstruct", _record("numpy.ndarray")))
    },
    **{
        f"{module}.{name}": _path
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath")
    },
}
MENTIONED = {*DTYPES, *STORAGES, "numpy.ndarray"}  # harmless names that are never called


def resolve(full: str) -> Name:
    """Return the name "module.attribute"; raise InputError if it is not on the list."""
    full = re.sub(r"^__builtin__\.", "builtins.", full)  # Python 2
    if full not in REBUILD and full not in MENTIONED:
        raise InputError(
            f"asks for {full[:100]!r}, which is not needed to rebuild tensors; it was not run, and "
            f"nothing was read. {RESAVE[0].upper()}{RESAVE[1:]}"
        )
    return Name(full)


def refer(saved: tuple) -> Storage:
    """Read what PyTorch leaves in the pickle where a storage was: its type, key and length."""
    kind, storage_type, key, _location, numel, *view = saved[:6]
    if kind != "storage" or any(view):
        raise InputError(f"refers to its tensors in a form that is not read; {RESAVE}")
    if type(key) is not str or not _is_size(numel):
        raise TypeError("a storage with a key or a length of wrong type")
    return Storage(key, DTYPES[STORAGES[storage_type.full]], numel)
