"""Export of parameters to the names, layouts and buffers of the PyTorch original."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segret_jax.checkpoint.safetensors import Tensors, write_safetensors
from segret_jax.convert.recognize import torch_format
from segret_jax.errors import InputError
from segret_jax.files import disk_errors_as_input_errors
from segret_jax.models.config import ModelConfig
from segret_jax.models.factory import ModelBundle
from segret_jax.trees import leaves_by_path


def export_tensors(
    model: ModelConfig, num_classes: int, bundle: ModelBundle, *, unused: Tensors | None = None
) -> dict[str, np.ndarray]:
    """Return every tensor of the original's state dict, in its names and layouts.

    Args:
        model: The settings of the model.
        num_classes: The number of its classes.
        bundle: The model.
        unused: Tensors that an import dropped; others that the original never uses get defaults.

    Returns:
        float32 arrays (counters int64) by name, sorted.

    Raises:
        InputError: PyTorch files cannot express the model's settings.
    """
    form, prefix = torch_format(model), model.task == "segmentation"
    form.check_export(model)
    tensors = {}
    for path, leaf in leaves_by_path(*bundle.variables).items():
        array = form.to_torch(np.asarray(leaf, np.float32), path)
        tensors[form.key(path, prefix=prefix)] = np.ascontiguousarray(array)
    for name, default in form.unused(model, num_classes, list(tensors), prefix=prefix).items():
        tensors[name] = np.asarray((unused or {}).get(name, default)).astype(default.dtype)
    return dict(sorted(tensors.items()))


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write a file, whole or not at all, in the format that its name ends in.

    Args:
        path: The file; its name ends in one of `ENDINGS`, in capitals or not.
        tensors: The tensors by name.
        metadata: Texts by key, for .safetensors only.

    Raises:
        InputError: The file exists, has another ending, is to be PyTorch's and PyTorch is not
            installed, or the disk refuses.
    """
    ending = path.suffix.lower()
    if ending not in WRITERS:
        raise InputError(f"{path}: give a name that ends in {', '.join(ENDINGS)}")
    if path.exists():
        raise InputError(f"{path} exists already: delete it, or choose another name")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with disk_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            WRITERS[ending](partial, tensors, metadata)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _write_npz(path: Path, tensors: Tensors, _metadata: Any) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **tensors)


def _write_torch(path: Path, tensors: Tensors, _metadata: Any) -> None:
    try:
        import torch
    except ImportError:
        message = "a .pth needs PyTorch, which is not installed; install it, or write .safetensors"
        raise InputError(message) from None
    try:
        torch.save({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, path)
    except RuntimeError as error:  # what a full disk is to PyTorch
        raise OSError("PyTorch could not write it") from error


WRITERS = {
    ".safetensors": write_safetensors,
    ".npz": _write_npz,
    ".pth": _write_torch,
    ".pt": _write_torch,
}
ENDINGS = tuple(WRITERS)
