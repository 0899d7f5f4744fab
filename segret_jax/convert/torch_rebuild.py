"""What the names in a PyTorch file's pickle stand for, by a closed list.

`REBUILD` holds the few functions and classes that the tensors and the usual metadata of a
checkpoint need, each with a function in its place that makes plain data. Objects of other packages
become inert records (`records`). Any other name is refused: of Python, PyTorch or this package.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from segret_jax.convert.records import RECORDS, TYPES, Name, Record, canonical, is_foreign
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
STORAGES = {
    "torch.DoubleStorage": "torch.float64", "torch.FloatStorage": "torch.float32",
    "torch.HalfStorage": "torch.float16", "torch.BFloat16Storage": "torch.bfloat16",
    "torch.LongStorage": "torch.int64", "torch.IntStorage": "torch.int32",
    "torch.ShortStorage": "torch.int16", "torch.CharStorage": "torch.int8",
    "torch.ByteStorage": "torch.uint8", "torch.BoolStorage": "torch.bool",
    "torch.storage.UntypedStorage": "torch.uint8",
}  # fmt: skip


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


def _device(kind: Any, index: Any = 0) -> str:
    if type(kind) is not str or len(kind) > 20 or not _is_size(index):
        raise TypeError("a device of wrong types")
    return f"{kind}:{index}"


def _attribute(target: Any, attribute: Any) -> Record:
    """builtins.getattr, with which protocol 2 names a class's method, as of mmengine's history."""
    owner = target.full if isinstance(target, Name) else getattr(target, "name", "")
    if not is_foreign(owner) or type(attribute) is not str or not attribute.isidentifier():
        raise _refusal("builtins.getattr")
    return Record(owner, (attribute,))


REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda size=(): size,
    "torch.device": _device,
    "torch.torch_version.TorchVersion": lambda text: Record("torch.__version__", (text,)),
    "builtins.getattr": _attribute,
    **RECORDS,
}
MENTIONED = {*DTYPES, *STORAGES, *TYPES, "numpy.ndarray"}  # harmless names, never called


def resolve(full: str) -> Name:
    """Return the name "module.attribute"; raise InputError if it is refused."""
    full = canonical(full)
    if full not in REBUILD and full not in MENTIONED and not is_foreign(full):
        raise _refusal(full)
    return Name(full)


def rebuild(callee: Any, args: tuple) -> Any:
    """Return what stands for a call of `callee`: the rebuilt value, or an inert record."""
    if isinstance(callee, Record) and is_foreign(callee.name):  # a class inside another
        return Record(callee.name, args)
    if callee.full in REBUILD:
        return REBUILD[callee.full](*args)
    if callee.full in MENTIONED or not is_foreign(callee.full):
        raise TypeError(f"a call of {callee.full}")
    return Record(callee.full, args)


def _refusal(full: str) -> InputError:
    return InputError(
        f"asks for {full[:100]!r}, which is not needed to rebuild tensors; it was not run, and "
        f"nothing was read. {RESAVE[0].upper()}{RESAVE[1:]}"
    )


def refer(saved: tuple) -> Storage:
    """Read what PyTorch leaves in the pickle where a storage was: its type, key and length."""
    kind, storage_type, key, _location, numel, *view = saved[:6]
    if kind != "storage" or any(view):
        raise InputError(f"refers to its tensors in a form that is not read; {RESAVE}")
    if type(key) is not str or not _is_size(numel):
        raise TypeError("a storage with a key or a length of wrong type")
    return Storage(key, DTYPES[STORAGES[storage_type.full]], numel)
