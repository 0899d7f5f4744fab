"""Small models with random weights, as a PyTorch file would have them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from segret_jax.config import ModelConfig
from segret_jax.convert.exporting import export_tensors
from segret_jax.models.factory import abstract
from tests.convert import forge
from tests.settings import segret

CLASSIFIER = {"task": "classification", "rotary": True, "ffn_conv": True}


def random_tensors(num_classes: int = 5, **model: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a SegRet; use it with the fixture `mini`."""
    return tensors_of(segret(**model), num_classes)


def tensors_of(config: ModelConfig, num_classes: int) -> dict[str, np.ndarray]:
    """Return random tensors of a model of any family."""
    shapes, rng = abstract(config, num_classes), np.random.default_rng(0)
    bundle = jax.tree.map(lambda x: rng.random(x.shape, np.float32) + 0.5, shapes)
    return export_tensors(config, num_classes, bundle)


def write_pth(path: Path, tensors: dict[str, np.ndarray], **beside: object) -> Path:
    """Write the tensors under "state_dict", as `torch.save` does, and plain data beside them."""
    return write_state_dicts(path, {"state_dict": tensors}, **beside)


def write_state_dicts(
    path: Path, state_dicts: dict[str, dict[str, np.ndarray]], **beside: object
) -> Path:
    """Write several state dicts by their keys, and plain data beside them."""
    entries: dict[str, bytes] = {}
    states = {key: _state(tensors, entries) for key, tensors in state_dicts.items()}
    others = {key: forge.value(value) for key, value in beside.items()}
    return forge.write_zip(path, forge.state(**states, **others), **entries)


def _state(tensors: dict[str, np.ndarray], entries: dict[str, bytes]) -> bytes:
    """Return the pickle of a state dict, whose storages are added to `entries`."""
    items = {}
    for i, (name, array) in enumerate(tensors.items(), len(entries)):
        kind = "torch.FloatStorage" if array.dtype == np.float32 else "torch.LongStorage"
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        stored = forge.storage(str(i), array.size, kind)
        items[name] = forge.tensor(0, array.shape, strides[: array.ndim], stored)
        entries[f"data/{i}"] = array.tobytes()
    return forge.state(**items)
