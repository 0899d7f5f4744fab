"""Folders of Hugging Face: one file of weights or its shards with an index, and config.json.

    model.safetensors, model.safetensors.index.json, or pytorch_model.bin in place of .safetensors

An index maps each tensor to the file of the folder that holds it. It is believed only as far as the
files bear it out, and names no file elsewhere.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segret_jax.convert.file_classes import find_labels
from segret_jax.convert.metadata import plain_metadata, shorten
from segret_jax.convert.prefixes import cut_prefixes
from segret_jax.convert.tensors import TensorFile, read_as_named, read_tensors
from segret_jax.errors import InputError

INDEX = ".index.json"
WEIGHTS = tuple(
    name + ending for name in ("model.safetensors", "pytorch_model.bin") for ending in ("", INDEX)
)  # the first found is taken, as transformers does
MAX_JSON = 2**24  # bytes
MAX_SHARDS = 1000
AGAIN = "download the folder again"


def find_weights(folder: Path) -> str:
    """Return the name of the weights in a folder of Hugging Face; "" if it is none."""
    return next((name for name in WEIGHTS if os.path.lexists(folder / name)), "")


def read_source(path: Path, *, wrapper: str = "") -> TensorFile:
    """Read a file as `read_tensors` does, or the weights in a folder or of an index file.

    Raises InputError as `read_tensors` does, and for a folder whose files do not add up.
    """
    if not path.is_dir():
        is_index = path.name.endswith(INDEX)
        return _read_shards(path) if is_index else read_tensors(path, wrapper=wrapper)
    name = find_weights(path)
    if not name:
        raise InputError(f"{path} has none of {', '.join(WEIGHTS)}: give the file of the weights")
    file = _locate(path, name)
    if name.endswith(INDEX) and wrapper:
        raise InputError(f"{path} has shards, which hold one state dict: leave --wrapper out")
    found = _read_shards(file) if name.endswith(INDEX) else read_tensors(file, wrapper=wrapper)
    if not (path / "config.json").exists():
        return found
    config = _read_json(_locate(path, "config.json"))
    return replace(
        found,
        metadata=found.metadata | {"config": plain_metadata(config)},
        classes=found.classes or find_labels(config),
    )


def _locate(folder: Path, name: str) -> Path:
    """Return a file of the folder; InputError unless it is a plain file there.

    A link may lead to another file of the folder, or to Hugging Face's cache, whose folders
    `snapshots/REVISION` are of links to `blobs`.
    """
    plain = name.isprintable() and len(name) <= 200 and not set(name) & set("/\\:")
    if not plain or name in ("", ".", ".."):
        raise InputError(
            f"{folder}: {shorten(name)!r} is no name of a file beside the index; {AGAIN}"
        )
    file, home = folder / name, folder.resolve()
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError for links that lead to each other
        raise InputError(f"{folder} lacks {name}, which it should hold; {AGAIN}") from error
    if real.parent not in (home, home.parent.parent / "blobs"):
        raise InputError(f"{file} is a link to {real}, outside of its folder; put the file there")
    if not real.is_file():
        raise InputError(f"{file} is no plain file; {AGAIN}")
    return file


def _read_shards(index: Path) -> TensorFile:
    """Read the shards of an index; each tensor must lie where the index says, and nowhere else."""
    content = _read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} is no index of shards: it has no 'weight_map'; {AGAIN}")
    names = sorted({str(name) for name in places.values()})
    if len(names) > MAX_SHARDS:
        raise InputError(f"{index} names {len(names)} files; at most {MAX_SHARDS} are read")
    shards = {name: _locate(index.parent, name) for name in names}
    files = {name: read_as_named(file) for name, file in shards.items()}
    _check_places(index, places, files)
    first = files[names[0]]
    sums = "".join(f"{file.sha256}  {name}\n" for name, file in files.items())
    tensors = {n: tensor for file in files.values() for n, tensor in file.tensors.items()}
    try:
        tensors, prefix = cut_prefixes(tensors)
    except InputError as error:
        raise InputError(f"{index}: {error}") from None
    return replace(
        first,
        tensors=tensors,
        prefix=prefix,
        format=f"{first.format} in {len(files)} files",
        sha256=hashlib.sha256(sums.encode()).hexdigest(),  # of what sha256sum prints for them
    )


def _check_places(index: Path, places: Mapping[str, Any], files: Mapping[str, TensorFile]) -> None:
    """Raise InputError unless each shard holds just the tensors that the index maps to it."""
    for name, file in files.items():
        expected = {tensor for tensor, place in places.items() if place == name}
        if more := sorted(file.tensors.keys() - expected):
            other = places.get(more[0])
            where = f"to {shorten(str(other))!r}" if other else "nowhere"
            raise InputError(
                f"{index} maps tensor {shorten(more[0])!r} {where}, but {name} holds it; {AGAIN}"
            )
        if less := sorted(expected - file.tensors.keys()):
            raise InputError(
                f"{index} maps tensor {shorten(less[0])!r} to {name}, which lacks it; {AGAIN}"
            )


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds a dict; InputError for another, and for keys given twice."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError(f"longer than {MAX_JSON} bytes")
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
        if not isinstance(content, dict):
            raise ValueError("no {...}")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{file} cannot be read ({shorten(reason)}); {AGAIN}") from error
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found
