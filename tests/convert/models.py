"""Small models with random weights, as a PyTorch file would have them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from segret_jax.convert.exporting import export_tensors
from segret_jax.models.factory import abstract
from tests.convert import forge
from tests.settings import segret

CLASSIFIER = {"task": "classification", "rotary": True, "ffn_conv": True}


def random_tensors(num_classes: int = 5, **model: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a model; use it with the fixture `mini`."""
    config, rng = segret(**model), np.random.default_rng(0)
    shapes = abstract(config, num_classes)
    bundle = jax.tree.map(lambda x: rng.random(x.shape, np.float32) + 0.5, shapes)
    return export_tensors(config, num_classes, bundle)


def write_pth(path: Path, tensors: dict[str, np.ndarray], **beside: object) -> Path:
    """Write the tensors under "state_dict", as `torch.save` does, and plain data beside them."""
    entries, items = {}, {}
    for i, (name, array) in enumerate(tensors.items()):
        kind = "torch.FloatStorage" if array.dtype == np.float32 else "torch.LongStorage"
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        stored = forge.storage(str(i), array.size, kind)
        items[name] = forge.tensor(0, array.shape, strides[: array.ndim], stored)
        entries[f"data/{i}"] = array.tobytes()
    others = {key: forge.value(value) for key, value in beside.items()}
    return forge.write_zip(path, forge.state(state_dict=forge.state(**items), **others), **entries)
