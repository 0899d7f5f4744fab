"""Tensors by name out of a PyTorch, safetensors or NumPy file, whatever its name ends in.

A checkpoint of PyTorch is a state dict (tensors by name), or a dict that holds one or several of
them beside the optimizer, the epoch and so on: these are unwrapped here.
"""

import errno
import hashlib
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from segret_jax.convert.file_classes import FileClasses, find_classes
from segret_jax.convert.metadata import MAX_ITEMS, MAX_TEXT, plain_metadata, shorten
from segret_jax.convert.prefixes import cut_prefixes
from segret_jax.convert.safetensors import read_safetensors
from segret_jax.convert.torch_file import LEGACY_START, TorchFile, open_legacy, open_zip
from segret_jax.convert.torch_rebuild import RESAVE, Storage, Tensor
from segret_jax.errors import InputError, unknown_name

WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema")  # the first found is taken
MAX_NPZ_BYTES = 2**32  # unpacked: a file of some MB may claim any size
MAX_SHARING = 8  # bytes of all tensors for each byte of their storages, as tied ones share theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """What `read_tensors` found.

    Arrays are read-only, in PyTorch's layouts; some may be views of one memory. `wrapper` is the
    key under which they lay ("" if at the top), `other_wrappers` the keys of further state dicts,
    `prefix` what was cut off the names. `metadata` is plain data that JSON can hold; `beside` are
    names of tensors that lie beside the state dict, where metadata does. `classes` are those that
    the file names itself.
    """

    tensors: dict[str, np.ndarray]
    format: str  # torch zip [without checksums] | torch legacy | safetensors | npz
    wrapper: str
    other_wrappers: tuple[str, ...]
    prefix: str
    sha256: str
    metadata: dict[str, Any]
    beside: tuple[str, ...] = ()
    classes: FileClasses | None = None


def read_tensors(path: str | Path, *, wrapper: str = "") -> TensorFile:
    """Read a checkpoint; nothing that the file asks to run is run, and PyTorch is not needed.

    `wrapper` chooses among several state dicts in one file, such as "model_ema"; by default the
    first of `WRAPPERS`. Raises InputError for a file that is missing, damaged, of another format,
    or that holds more than tensors and plain data.
    """
    file = read_as_named(path, wrapper=wrapper)
    try:
        tensors, prefix = cut_prefixes(file.tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return replace(file, tensors=tensors, prefix=prefix)


def read_as_named(path: str | Path, *, wrapper: str = "") -> TensorFile:
    """Read a checkpoint as `read_tensors` does, with the names that the file gives its tensors."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            result = _read(file, size, wrapper, digest)
        if wrapper and result.wrapper != wrapper:
            raise InputError(f"has no {wrapper!r}; its tensors lie at the top, choose nothing")
        return result
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged or hostile file meets the readers anywhere
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a wrong place
            raise InputError(f"{path}: {error.strerror or error}") from error
        reason = shorten(" ".join(str(error).split())) or type(error).__name__
        raise InputError(
            f"{path}: is damaged or cut off ({reason}); download or save it again"
        ) from error


def _read(file: BufferedReader, size: int, wrapper: str, sha256: str) -> TensorFile:
    """Tell the format by content, and read it."""
    start = file.read(len(LEGACY_START))
    file.seek(0)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/data.pkl") for name in names):
                return _unwrap(open_zip(archive, size), wrapper, sha256)
            if all(name.endswith(".npy") for name in names):
                return _result(_read_npz(archive, file), {}, "npz", sha256)
        raise InputError("is a zip archive, but neither of PyTorch nor of NumPy; unpack it first")
    if start == LEGACY_START:
        return _unwrap(open_legacy(file, size), wrapper, sha256)
    if start[8:9] == b"{":
        return _result(*read_safetensors(file, size), "safetensors", sha256)
    raise InputError(
        "is no file of torch.save, .safetensors or .npz, or its beginning is damaged; "
        "download it again, or save it as one of these"
    )


def _read_npz(archive: zipfile.ZipFile, file: BufferedReader) -> dict[str, np.ndarray]:
    if sum(info.file_size for info in archive.infolist()) > MAX_NPZ_BYTES:
        raise InputError("claims to unpack to more than 4 GiB; save the weights alone")
    file.seek(0)
    tensors = {}
    for name, array in np.load(file, allow_pickle=False).items():
        if array.dtype == "V2":  # NumPy writes bfloat16 without its name
            array = array.view(ml_dtypes.bfloat16)
        elif array.dtype.kind not in "biuf" or not array.dtype.isnative:
            raise InputError(
                f"has array {name[:100]!r} of type {shorten(str(array.dtype))}; save it as float32"
            )
        tensors[name] = array
    return tensors


def _unwrap(file: TorchFile, wrapper: str, sha256: str) -> TensorFile:
    """Choose a state dict in what was saved, and read its tensors."""
    content = file.content if isinstance(file.content, dict) else {}
    # Each value is searched once, as a pickle can put one long dict under a million keys.
    values = {id(value): value for value in content.values()}
    holders = {place for place, value in values.items() if _has_tensors(value)}
    found = [key for key, value in content.items() if _is_name(key) and id(value) in holders]
    if wrapper and found and wrapper not in found:
        raise InputError(shorten(str(unknown_name("state dict", wrapper, found))))
    chosen = wrapper if wrapper in found else _first(found, content)
    if not chosen and not _has_tensors(content):
        remedy = (
            f"give --wrapper NAME, one of {', '.join(found)}"
            if found
            else "save model.state_dict() again"
        )
        where = ", ".join(WRAPPERS)
        raise InputError(f"has no tensors at its top or under {where}; {shorten(remedy)}")
    state = content[chosen] if chosen else content
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    others = tuple(key for key in found if key != chosen)
    metadata = {k: v for k, v in content.items() if k not in found} if chosen else {}
    metadata |= {key: value for key, value in state.items() if key not in tensors}
    beside = [shorten(str(key)) for key, value in metadata.items() if isinstance(value, Tensor)]
    metadata = {key: value for key, value in metadata.items() if not isinstance(value, Tensor)}
    return _result(
        _arrays(tensors, file.read), metadata, file.format, sha256,
        wrapper=chosen, others=others, beside=tuple(beside[:MAX_ITEMS]),
        classes=find_classes(content),
    )  # fmt: skip


def _first(found: list[str], content: dict[Any, Any]) -> str:
    """Return the state dict to read by default; "" for the tensors at the top, if there are any."""
    if known := next((key for key in WRAPPERS if key in found), ""):
        return known
    top = (value for value in content.values() if isinstance(value, Tensor))
    only_counters = all(math.prod(tensor.shape) == 1 for tensor in top)
    return found[0] if len(found) == 1 and only_counters else ""


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())


def _is_name(key: Any) -> bool:
    """Say whether a key can be printed in a line."""
    return isinstance(key, str) and key.isprintable() and len(key) <= MAX_TEXT


def _arrays(tensors: dict[str, Tensor], read: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    """Read each storage once, as tied weights share theirs."""
    data: dict[str, bytes] = {}
    for tensor in tensors.values():
        storage = tensor.storage
        if storage.key not in data:
            data[storage.key] = read(storage)
        if len(data[storage.key]) < storage.nbytes:
            raise ValueError("a storage is shorter than its tensors say")
    claim_workdir = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values())
    if claim_workdir > MAX_SHARING * sum(map(len, data.values())):
        raise InputError(f"has many tensors that share one memory; {RESAVE}")
    return {name: tensor.array(data[tensor.storage.key]) for name, tensor in tensors.items()}


def _result(
    tensors: dict[str, np.ndarray],
    metadata: dict[Any, Any],
    kind: str,
    sha256: str,
    *,
    wrapper: str = "",
    others: tuple[str, ...] = (),
    beside: tuple[str, ...] = (),
    classes: FileClasses | None = None,
) -> TensorFile:
    if not tensors:
        raise InputError("holds no tensors; save model.state_dict() again")
    if bad := [name for name in tensors if not _is_name(name)]:
        raise InputError(
            f"has a tensor named '{shorten(str(bad[0]))}'; save model.state_dict() again"
        )
    return TensorFile(
        tensors=tensors,
        format=kind,
        wrapper=wrapper,
        other_wrappers=others,
        prefix="",
        sha256=sha256,
        metadata=plain_metadata(metadata),
        beside=beside,
        classes=classes,
    )
