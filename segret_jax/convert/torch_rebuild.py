"""Replacements for the names in a PyTorch file's pickle, by a closed list.

`CONSTRUCTORS` maps the few functions and classes that the tensors and the usual metadata of a
checkpoint need to functions here that return plain data. Objects of packages outside Python and
PyTorch (mmengine's `HistoryBuffer`, a user's own config class) become inert records. Of Python's
own names only those of plain data do: attacks use the others.
"""

import math
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes  # noqa: F401  which tells NumPy of bfloat16
import numpy as np

from segret_jax.convert.records import Name, Record, read_numbers, set_items
from segret_jax.errors import InputError

RESAVE = (
    "if you trust the file, load it in PyTorch and save model.state_dict() alone, or save its "
    "tensors as .safetensors"
)
MAX_AXES = 64  # NumPy's; PyTorch has as many
MAX_NAME = 200  # characters of "module.attribute"
PRIVILEGED = {*sys.stdlib_module_names, "torch", "functorch", "segret_jax"}
NAMES = {  # of PyTorch's types in those of storages, in Python and in NumPy
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool",
}  # fmt: skip
DTYPES = {
    "torch.storage.UntypedStorage": np.dtype("uint8"),
    **{f"torch.{kind}Storage": np.dtype(name) for kind, name in NAMES.items()},
    **{f"torch.{name}": np.dtype(name) for name in (*NAMES.values(), "uint16", "uint32", "uint64")},
}


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
        axes = zip(self.shape, self.strides, strict=True)
        strides = [stride * dtype.itemsize if n > 1 else 0 for n, stride in axes]
        return np.ndarray(self.shape, dtype, data, self.offset * dtype.itemsize, strides)


def resolve(module: str, attribute: str) -> Name:
    """Return a name in the spelling of Python 3 and NumPy 1; InputError if it is refused."""
    module, attribute = NAME_MAPPING.get((module, attribute), (module, attribute))
    module = IMPORT_MAPPING.get(module, module).replace("numpy._core", "numpy.core")
    name = f"{module}.{attribute}"
    if name not in CONSTRUCTORS and name not in NEVER_CALLED and not _is_inert(name):
        raise _refusal(name)
    return Name(name)


def rebuild(callee: Name | Record, args: tuple) -> Any:
    """Return the value of a call of `callee`, rebuilt here, or an inert record."""
    if callee.name in NEVER_CALLED:
        raise TypeError(f"a call of {callee.name}")
    make = CONSTRUCTORS.get(callee.name)
    return make(*args) if make else Record(callee.name, args)


def _refusal(name: str) -> InputError:
    return InputError(
        f"asks for {name[:100]!r}, which is not needed to rebuild tensors; it was not run, and "
        f"nothing was read. {RESAVE[0].upper()}{RESAVE[1:]}"
    )


def _is_inert(name: str) -> bool:
    """Return whether a name is in `INERT`, or of a package other than Python, PyTorch, this one."""
    parts = name.split(".") if len(name) <= MAX_NAME else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return False
    return parts[0] not in PRIVILEGED or name in INERT or name.rpartition(".")[0] in INERT


def is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2; rest: requires_grad, hooks, conjugate and negative bits."""
    possible = isinstance(storage, Storage) and type(shape) is type(strides) is tuple
    possible = possible and len(shape) == len(strides) <= MAX_AXES
    if not possible or not all(map(is_size, (offset, *shape, *strides))):
        raise InputError("holds a tensor of impossible type or size; download it again")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    view, held = f"tensor of shape {str(shape)[:100]}", f" of {storage.numel} elements"
    if 0 not in shape and last >= storage.numel:
        raise InputError(f"holds a {view} that leaves its storage{held}; download it again")
    if math.prod(shape) > storage.numel:
        raise InputError(
            f"holds an expanded {view} in a storage{held}; save a .contiguous() copy of it"
        )
    if len(rest) > 2 and rest[2]:
        raise InputError(f"holds a tensor that is stored conjugate or negated; {RESAVE}")
    return Tensor(storage, offset, shape, strides)


def _tensor_v3(storage: Storage, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3: its storage is bytes; rest[2] names the dtype."""
    dtype = DTYPES[rest[2].name]
    typed = replace(storage, dtype=dtype, numel=storage.numel // dtype.itemsize)
    return _tensor(typed, offset, shape, strides, *rest[:2], *rest[3:])


def _first(value: Any = (), *_: Any) -> Any:
    return value


def _device(kind: Any, index: Any = 0) -> str:
    if type(kind) is not str or len(kind) > 20 or not is_size(index):
        raise TypeError("a device of wrong types")
    return f"{kind}:{index}"


def _attribute(target: Name | Record, _attribute: Any) -> Name:
    """builtins.getattr, with which protocol 2 names a class's method, as of mmengine's history."""
    if not _is_inert(target.name):
        raise _refusal("builtins.getattr")
    return Name(target.name)


def _mapping(pairs: Any = ()) -> dict:
    if type(pairs) is dict:
        return pairs
    mapping: dict = {}
    set_items(mapping, pairs)
    if pairs:
        pairs.clear()  # they moved, so that the next dict of the same list is no copy
    return mapping


def _deque(items: Any = (), *_: Any) -> list:
    if items not in ((), []):  # its items follow, by APPENDS
        raise TypeError("a deque with items")
    return []


def _encode(text: Any, encoding: Any) -> Record:
    """_codecs.encode, which is how protocol 2 writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return Record("bytes", (text,))


def _scalar(dtype: Any, data: Any) -> Any:
    """numpy's scalar, such as the best accuracy so far, as a plain number; text as a record."""
    numbers = read_numbers(dtype, data, 1)
    return Record("numpy.generic", (dtype, data)) if numbers is None else numbers[0].item()


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": _first,
    "torch.device": _device,
    "torch.torch_version.TorchVersion": lambda text: Record("torch.__version__", (text,)),
    "builtins.getattr": _attribute,
    "builtins.set": _first,
    "builtins.frozenset": _first,
    "builtins.bytes": lambda: Record("bytes", ("",)),
    "_codecs.encode": _encode,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,  # milestones of a learning-rate schedule
    "collections.defaultdict": lambda _factory=None: {},
    "collections.deque": _deque,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": lambda *args: Record("numpy.ndarray", args),
}
INERT = {  # names and whole modules of Python that become records, too
    "argparse", "datetime", "decimal", "fractions", "pathlib", "pathlib._local", "uuid",
    "types.SimpleNamespace", "re._compile", "builtins.complex", "builtins.slice", "builtins.range",
    "builtins.bytearray",
}  # fmt: skip
NEVER_CALLED = {*DTYPES} | {  # never called, such as the factory of a defaultdict
    f"builtins.{name}"
    for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")
}
