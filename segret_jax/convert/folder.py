"""Folders of Hugging Face: one file of weights or its shards with an index, and config.json.

    model.safetensors, model.safetensors.index.json, or pytorch_model.bin in place of .safetensors

An index maps each tensor to the file of the folder that holds it. It must agree with the files, and
may name none elsewhere.
"""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

from segret_jax.convert.file_classes import find_labels
from segret_jax.convert.metadata import plain_metadata
from segret_jax.convert.tensors import TensorFile, read_tensors, read_unstripped, strip_prefixes
from segret_jax.errors import InputError, shorten
from segret_jax.files import read_json_object

INDEX = ".index.json"
WEIGHTS = tuple(
    name + ending for name in ("model.safetensors", "pytorch_model.bin") for ending in ("", INDEX)
)  # the first found is taken, as transformers does
MAX_SHARDS = 1000
RETRY = "download the folder again"


def find_weights(folder: Path) -> str:
    """Return the name of the weights in a Hugging Face folder; "" if it is none."""
    return next((name for name in WEIGHTS if os.path.lexists(folder / name)), "")


def read_source(path: Path, *, wrapper: str = "") -> TensorFile:
    """Read a file of weights, an index with its shards, or a Hugging Face folder.

    Args:
        path: The file or folder.
        wrapper: The key of a state dict, as in `read_tensors`.

    Raises:
        InputError: A file cannot be read, as in `read_tensors`; or the files of the folder
            contradict each other or lie elsewhere.
    """
    if not path.is_dir():
        return _read_weights(path, wrapper)
    name = find_weights(path)
    if not name:
        raise InputError(f"{path} has none of {', '.join(WEIGHTS)}: give the file of the weights")
    found = _read_weights(_locate(path, name), wrapper)
    if not (path / "config.json").exists():
        return found
    config = read_json_object(_locate(path, "config.json"), RETRY)
    metadata = found.metadata | {"config": plain_metadata(config)}
    return replace(found, metadata=metadata, classes=found.classes or find_labels(config))


def _locate(folder: Path, name: str) -> Path:
    """Return a file of the folder; InputError unless it is a plain file there.

    A link may lead to another file of the folder, or to Hugging Face's cache, whose folders
    `snapshots/REVISION` are of links to `blobs`.
    """
    if not re.fullmatch(r"(?!\.+$)[^/\\:]{1,200}", name) or not name.isprintable():
        raise InputError(
            f"{folder}: {shorten(name)!r} is no name of a file beside the index; {RETRY}"
        )
    file, home = folder / name, folder.resolve()
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError for links that lead to each other
        raise InputError(f"{folder} lacks {name}, which it should hold; {RETRY}") from error
    if real.parent not in (home, home.parent.parent / "blobs"):
        raise InputError(f"{file} is a link to {real}, outside of its folder; put the file there")
    if not real.is_file():
        raise InputError(f"{file} is no plain file; {RETRY}")
    return file


def _read_weights(file: Path, wrapper: str) -> TensorFile:
    """Read one file, or the shards of an index, which must hold exactly the tensors it maps."""
    if not file.name.endswith(INDEX):
        return read_tensors(file, wrapper=wrapper)
    if wrapper:
        raise InputError(f"{file} is of shards, which hold one state dict: leave --wrapper out")
    found_at = read_json_object(file, RETRY).get("weight_map")
    if not isinstance(found_at, dict) or not found_at:
        raise InputError(f"{file} is no index of shards: it has no 'weight_map'; {RETRY}")
    found_at = {tensor: str(name) for tensor, name in found_at.items()}
    names = sorted(set(found_at.values()))
    if len(names) > MAX_SHARDS:
        raise InputError(f"{file} names {len(names)} files; at most {MAX_SHARDS} are read")
    located = {name: _locate(file.parent, name) for name in names}
    shards = {name: read_unstripped(shard) for name, shard in located.items()}
    held = {(tensor, name) for name, shard in shards.items() for tensor in shard.tensors}
    for tensor, name in sorted(found_at.items() ^ held):
        state = "holds" if (tensor, name) in held else "lacks"
        where = f"to {shorten(found_at[tensor])!r}" if tensor in found_at else "nowhere"
        raise InputError(
            f"{file} maps tensor {shorten(tensor)!r} {where}, but {name} {state} it; {RETRY}"
        )
    sums = "".join(f"{shard.sha256}  {name}\n" for name, shard in shards.items())
    first = shards[names[0]]
    whole = replace(
        first,
        tensors={name: t for shard in shards.values() for name, t in shard.tensors.items()},
        format=f"{first.format} in {len(shards)} files",
        sha256=hashlib.sha256(sums.encode()).hexdigest(),  # of what sha256sum prints for them
    )
    return strip_prefixes(file, whole)
