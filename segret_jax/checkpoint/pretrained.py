"""Saved models: folders to share, with the weights alone, as `Model.save_pretrained` writes them.

    config.json        format, config, class table, hash of the weights, and what is known of them
    model.safetensors  an array for each parameter and batch statistic, under its own name
    README.md          the model card, which nothing reads

The arrays are exactly those of the model, float32 or float16; read, they are float32.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segret_jax import __version__
from segret_jax import config as configs
from segret_jax.checkpoint.folders import CONFIG, LIBRARY, RETRY, WEIGHTS
from segret_jax.checkpoint.safetensors import read_safetensors, write_safetensors
from segret_jax.data.class_table import MAX_CLASSES, ClassTable, parse_class_table
from segret_jax.data.lfs import refuse_pointer
from segret_jax.errors import InputError, shorten
from segret_jax.files import (
    damage_as_input_errors,
    disk_errors_as_input_errors,
    read_json_object,
)
from segret_jax.models.config import model_name

FORMAT = 1
CARD = "README.md"
DTYPES = ("float32", "float16")
STATISTICS = "batch_stats/"  # which stay float32: their range is wide, their share below 1%


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What config.json says of a saved model.

    Attributes:
        config: The config that the model was trained with, without paths.
        table: The classes of the outputs.
        facts: What is known of the weights, as JSON values (`model_card.known_facts`).
        sha256: The hash of model.safetensors.
    """

    config: configs.Config
    table: ClassTable
    facts: dict[str, Any]
    sha256: str


def write(
    folder: Path,
    *,
    config: configs.Config,
    table: ClassTable,
    arrays: Mapping[str, np.ndarray],
    facts: dict[str, Any],
    card: str,
    dtype: str,
) -> None:
    """Write a saved model; the folder appears complete or not at all.

    Args:
        folder: The folder, which is new or empty.
        config: The config; its paths are left out.
        table: The classes of the outputs.
        arrays: The float32 arrays by name.
        facts: What is known of the weights, as JSON values.
        card: The model card.
        dtype: The dtype of the parameters in the file, one of `DTYPES`.

    Raises:
        InputError: The folder is not empty, an array is not finite in `dtype`, or the disk refuses.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    tensors = {name: _cast(name, array, dtype) for name, array in arrays.items()}
    content = {
        "library_name": LIBRARY,
        "format": FORMAT,
        "version": __version__,
        "model_name": model_name(config.model),
        "classes": table.to_dict(),
        "facts": facts,
        "config": _without_paths(config),
    }
    folder = folder.absolute()
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    with disk_errors_as_input_errors(folder):
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"{folder} exists: choose another folder, or delete that one")
        partial.mkdir(parents=True)
        try:
            write_safetensors(partial / WEIGHTS, tensors, {"format": "flax"})
            with (partial / WEIGHTS).open("rb") as file:
                content["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            (partial / CONFIG).write_text(text, encoding="utf-8")
            (partial / CARD).write_text(card, encoding="utf-8")
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def read_description(folder: Path) -> Description:
    """Read config.json; InputError if it is damaged, hostile, or of a newer version."""
    file = folder / CONFIG
    content = read_json_object(file, RETRY)
    version = content.get("format")
    if content.get("library_name") != LIBRARY or type(version) is not int:
        raise InputError(f"{file} is not of a model that {LIBRARY} saved; {RETRY}")
    if version > FORMAT:
        raise InputError(
            f"{folder} was written by a newer version of {LIBRARY} (format {version}, this one "
            f"reads up to {FORMAT}): update {LIBRARY}"
        )
    table = parse_class_table(content.get("classes"), str(file), default_name="", most=MAX_CLASSES)
    if not all(name.isprintable() for name in (table.name, *table.class_names)):
        raise InputError(f"{file} names classes with unprintable characters; {RETRY}")
    facts = content.get("facts")
    try:
        config = configs.validate(configs.from_dict(content["config"]))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = shorten(str(error))
        raise InputError(f"{file} does not hold a config of this version: {reason}") from None
    return Description(
        config=config,
        table=table,
        facts=facts if isinstance(facts, dict) else {},
        sha256=str(content.get("sha256")),
    )


def read_arrays(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], sha256: str
) -> dict[str, np.ndarray]:
    """Read model.safetensors, which must hold exactly the arrays of `shapes`.

    Args:
        folder: The folder of the saved model.
        shapes: The shape of each array by name.
        sha256: The hash of the file.

    Returns:
        The arrays as float32, by name.

    Raises:
        InputError: The file is damaged or not the one meant, an array is unknown, missing, of
            another shape or dtype, or not finite.
    """
    path = folder / WEIGHTS
    with damage_as_input_errors(path):
        refuse_pointer(path, "it")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            tensors, _ = read_safetensors(file, size)
        if faults := _faults(tensors, shapes):
            raise InputError(
                f"{len(faults)} of its arrays do not fit the model in {CONFIG}, the first is "
                f"{faults[0]}; {RETRY}"
            )
        if digest != sha256:
            raise InputError(f"is not the file that {CONFIG} was written with; {RETRY}")
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def _faults(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what is wrong with each array that does not fit."""
    found = []
    for name in sorted(tensors.keys() | shapes.keys()):
        if name not in tensors:
            found.append(f"{name}, which is missing")
        elif name not in shapes:
            found.append(f"{shorten(name)!r}, which is unknown")
        elif (array := tensors[name]).shape != shapes[name]:
            found.append(f"{name}, of shape {list(array.shape)} instead of {list(shapes[name])}")
        elif str(array.dtype) not in DTYPES:
            found.append(f"{name}, of type {array.dtype} instead of {' or '.join(DTYPES)}")
        elif not np.isfinite(array).all():
            found.append(f"{name}, which has values that are not finite")
    return found


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array as `dtype`; InputError if a value is not finite in it."""
    wanted = np.dtype("float32" if name.startswith(STATISTICS) else dtype)
    if not (np.abs(array) <= np.finfo(wanted).max).all():
        remedy = "" if wanted == np.float32 else "; save as float32"
        raise InputError(f"{name} has values that are not finite in {wanted}{remedy}")
    return np.ascontiguousarray(array, wanted)


def _without_paths(config: configs.Config) -> dict[str, Any]:
    """Return the plain values of a config without the paths of this machine."""
    values = dataclasses.asdict(config)
    values["init_from"] = values["data"]["root"] = ""
    values["data"]["dataset"] = Path(config.data.dataset).name
    return values
