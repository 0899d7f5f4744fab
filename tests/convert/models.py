"""Small models with random weights, as a PyTorch file would have them."""

from typing import Any

import jax
import numpy as np

from segret_jax.config import ModelConfig
from segret_jax.convert.exporting import export_tensors
from segret_jax.training.state import abstract

CLASSIFIER = {"task": "classification", "rotary": True, "ffn_conv": True}


def random_tensors(num_classes: int = 5, **model: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a model; use it with the fixture `mini`."""
    config, rng = ModelConfig(**model), np.random.default_rng(0)
    _, *trees = abstract(config, num_classes)
    params, batch_stats = jax.tree.map(lambda x: rng.random(x.shape, np.float32) + 0.5, trees)
    return export_tensors(config, num_classes, params, batch_stats)
