"""Reading of tensors by name from a PyTorch, safetensors or NumPy file, told by its content.

A checkpoint of PyTorch is a state dict (tensors by name), or a dict that holds one or several of
them beside the optimizer, the epoch and so on: these are unwrapped here.
"""

import hashlib
import math
import os
import re
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from segret_jax.checkpoint.safetensors import read_safetensors
from segret_jax.convert.file_classes import FileClasses, find_classes
from segret_jax.convert.metadata import MAX_ITEMS, plain_metadata
from segret_jax.convert.torch_file import LEGACY_START, TorchFile, open_legacy, open_zip
from segret_jax.convert.torch_rebuild import RESAVE, Storage, Tensor
from segret_jax.errors import MAX_TEXT, InputError, shorten, unknown_name
from segret_jax.files import damage_as_input_errors
from segret_jax.models.families import FAMILIES

# The first found is taken. Of timm's files (SegMAN) that is the average, whose accuracy is the
# reported one; files with "model" (RMT) are of other trainers.
STATE_DICTS = ("model", "state_dict_ema", "state_dict", "model_ema")
MAX_NPZ_BYTES = 2**32  # unpacked: a file of some MB may claim any size
SAVE_AGAIN = "save model.state_dict() again"
MAX_SHARING = 8  # bytes of all tensors for each byte of their storages, as tied ones share theirs
# Attributes under which DataParallel and EMA, torch.compile, users' own classes, FSDP, activation
# checkpointing and Lightning Fabric hold their module. No model here has a module of such a name.
WRAPPER = re.compile(
    r"(?<![^.])(module|_orig_mod|model|_fsdp_wrapped_module|_checkpoint_wrapped_module|"
    r"_forward_module)\."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """The content of a checkpoint.

    Attributes:
        tensors: Read-only arrays by name, in PyTorch's layouts; some may share memory.
        format: The file's format.
        metadata: JSON values by key.
        wrapper: The key of the state dict, "" at the top.
        other_wrappers: The keys of further state dicts.
        prefix: The prefix that was removed from the names.
        sha256: The hash of the file.
        beside: The names of tensors beside the state dict, which are no part of the model.
        classes: The classes that the file names.
    """

    tensors: dict[str, np.ndarray]
    format: str  # torch zip [without checksums] | torch legacy | safetensors | npz
    metadata: dict[str, Any]
    wrapper: str = ""
    other_wrappers: tuple[str, ...] = ()
    prefix: str = ""
    sha256: str = ""
    beside: tuple[str, ...] = ()
    classes: FileClasses | None = None


def read_tensors(path: str | Path, *, wrapper: str = "") -> TensorFile:
    """Read a checkpoint; nothing that the file asks to run is run, and PyTorch is not needed.

    Args:
        path: The file.
        wrapper: The key of one of several state dicts in the file, such as "model_ema"; by default
            the first of `STATE_DICTS`.

    Raises:
        InputError: The file is missing, damaged, of another format, or holds more than tensors and
            plain data.
    """
    return strip_prefixes(path, read_unstripped(path, wrapper=wrapper))


def strip_prefixes(path: str | Path, file: TensorFile) -> TensorFile:
    """Return `file`, read from `path`, with the tensors under the model's own names.

    Cuts off the attributes of wrappers, and whatever all names of encoder blocks begin with, such
    as `net.`; other tensors keep their names, so that a counter beside them changes nothing.

    Raises:
        InputError: Two tensors get one name, so they are of two models.
    """
    names = {name: WRAPPER.sub("", name) for name in file.tensors}
    owner = _owner(names.values())
    taken: dict[str, str] = {}
    for name, cut in names.items():
        short = cut.removeprefix(owner)
        if short in taken:
            raise InputError(
                f"{path}: holds {taken[short]!r} and {name!r}, which are two models in one state "
                "dict; save the state dict of one of them"
            )
        taken[short] = name
    changed = (n.removesuffix(s) for s, n in taken.items() if s != n and n.endswith(s))
    tensors = {short: file.tensors[name] for short, name in taken.items()}
    return replace(file, tensors=tensors, prefix=next(changed, ""))


def _owner(names: Collection[str]) -> str:
    """Return what all names of encoder blocks begin with, before the names of the original.

    The family is not known yet: the shortest is of the one whose names explain the most.
    """
    blocks = [torch.encoder_block for f in FAMILIES.values() if (torch := f.load().torch)]
    patterns = [re.compile(rf"((?:[^.]+\.)*?)(?:{block.pattern})") for block in blocks]
    found = [{match[1] for match in map(one.match, names) if match} for one in patterns]
    return min((owners.pop() for owners in found if len(owners) == 1), key=len, default="")


def read_unstripped(path: str | Path, *, wrapper: str = "") -> TensorFile:
    """Read a checkpoint as `read_tensors` does, with the names that the file gives its tensors."""
    with damage_as_input_errors(path):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            found = _read(file, size, wrapper)
        if not found.tensors:
            raise InputError(f"holds no tensors; {SAVE_AGAIN}")
        if bad := [name for name in found.tensors if not _is_name(name)]:
            raise InputError(f"has a tensor named '{shorten(str(bad[0]))}'; {SAVE_AGAIN}")
        if wrapper and found.wrapper != wrapper:
            raise InputError(f"has no {wrapper!r}; its tensors lie at the top, choose nothing")
        return replace(found, sha256=digest)


def _read(file: BufferedReader, size: int, wrapper: str) -> TensorFile:
    """Recognize the format by content, and read it."""
    start = file.read(len(LEGACY_START))
    file.seek(0)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/data.pkl") for name in names):
                return _unwrap(open_zip(archive, size), wrapper)
            if all(name.endswith(".npy") for name in names):
                return TensorFile(tensors=_read_npz(archive, file), format="npz", metadata={})
        raise InputError("is a zip archive, but neither of PyTorch nor of NumPy; unpack it first")
    if start == LEGACY_START:
        return _unwrap(open_legacy(file, size), wrapper)
    if start[8:9] == b"{":
        tensors, metadata = read_safetensors(file, size)
        plain = plain_metadata(metadata)
        return TensorFile(tensors=tensors, format="safetensors", metadata=plain)
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


def _unwrap(file: TorchFile, wrapper: str) -> TensorFile:
    """Choose a state dict in what was saved, and read its tensors."""
    content = file.content if isinstance(file.content, dict) else {}
    # Each value is searched once, as a pickle can put one long dict under a million keys.
    values = {id(value): value for value in content.values()}
    holders = {path for path, value in values.items() if _has_tensors(value)}
    found = {k: value for k, value in content.items() if id(value) in holders and _is_name(k)}
    if wrapper and found and wrapper not in found:
        raise InputError(shorten(str(unknown_name("state dict", wrapper, found))))
    chosen = wrapper if wrapper in found else _first(found, content)
    state = found[chosen] if chosen else content
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        remedy = f"give --wrapper NAME, one of {', '.join(found)}" if found else SAVE_AGAIN
        where = ", ".join(STATE_DICTS)
        raise InputError(f"has no tensors at its top or under {where}; {shorten(remedy)}")
    rest = {k: value for k, value in content.items() if k not in found} if chosen else {}
    rest |= {key: value for key, value in state.items() if key not in tensors}
    beside = [shorten(str(key)) for key, value in rest.items() if isinstance(value, Tensor)]
    return TensorFile(
        tensors=_arrays(tensors, file.read),
        format=file.format,
        metadata=plain_metadata({k: v for k, v in rest.items() if not isinstance(v, Tensor)}),
        wrapper=chosen,
        other_wrappers=tuple(key for key in found if key != chosen),
        beside=tuple(beside[:MAX_ITEMS]),
        classes=find_classes(content),
    )


def _first(found: dict[str, Any], content: dict[Any, Any]) -> str:
    """Return the state dict to read by default; "" for the tensors at the top, if there are any."""
    if known := next((key for key in STATE_DICTS if key in found), ""):
        return known
    top = (value for value in content.values() if isinstance(value, Tensor))
    only_counters = all(math.prod(tensor.shape) == 1 for tensor in top)
    return next(iter(found)) if len(found) == 1 and only_counters else ""


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())


def _is_name(key: Any) -> bool:
    """Return whether a key can be printed in a line."""
    return isinstance(key, str) and key.isprintable() and len(key) <= MAX_TEXT


def _arrays(tensors: dict[str, Tensor], read: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    """Read each storage once, as tied weights share theirs."""
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    data = {key: read(storage) for key, storage in storages.items()}
    if any(len(data[t.storage.key]) < t.storage.nbytes for t in tensors.values()):
        raise ValueError("a storage is shorter than its tensors say")
    claimed = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values())
    if claimed > MAX_SHARING * sum(map(len, data.values())):
        raise InputError(f"has many tensors that share one memory; {RESAVE}")
    return {name: tensor.array(data[tensor.storage.key]) for name, tensor in tensors.items()}
