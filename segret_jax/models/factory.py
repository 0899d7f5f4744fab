"""Build models from their settings: with initial weights, or as shapes alone."""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from segret_jax.models.config import ModelConfig
from segret_jax.models.families import get_family
from segret_jax.models.kernels import ANY_PLATFORM, Platform


class ModelBundle(NamedTuple):
    """A model as its graph and two nested dicts of float32 arrays, or of their shapes."""

    graph: nnx.GraphDef[Any]
    params: Any
    batch_stats: Any

    @property
    def variables(self) -> tuple[Any, Any]:
        """Return (params, batch_stats), which `models.forward` takes."""
        return self.params, self.batch_stats

    @property
    def arrays(self) -> dict[str, Any]:
        """Return {"params", "batch_stats"}, as checkpoints name them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def num_params(self) -> int:
        """Return the number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def build(
    config: ModelConfig, num_classes: int, *, seed: int, platform: Platform = ANY_PLATFORM
) -> ModelBundle:
    """Initialize a model.

    Args:
        config: The settings of the model.
        num_classes: The number of classes of the logits.
        seed: The seed of the initial weights; the same seed gives the same bits.
        platform: The devices that will run the model (`kernels.platform_of`).

    Returns:
        The model, with its weights on the default device.
    """
    return _bundle(_model(config, num_classes, platform, nnx.Rngs(seed)))


def abstract(
    config: ModelConfig, num_classes: int, *, platform: Platform = ANY_PLATFORM
) -> ModelBundle:
    """Build a model with shapes in the place of arrays; see `build`. Allocates no weights."""

    def initialize() -> nnx.Module:
        rngs = nnx.Rngs(0)
        # A traced counter makes every draw search the whole trace so far: 7 s for large.
        zero: Any = np.zeros((), np.uint32)
        rngs.default.count = nnx.RngCount(zero, tag="default")
        return _model(config, num_classes, platform, rngs)

    return _bundle(nnx.eval_shape(initialize))


def _model(config: ModelConfig, num_classes: int, platform: Platform, rngs: nnx.Rngs) -> nnx.Module:
    build_model = get_family(config.family).load().build
    return build_model(config, num_classes, platform=platform, rngs=rngs)


def _bundle(model: nnx.Module) -> ModelBundle:
    graph, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)
    return ModelBundle(graph, *map(nnx.to_pure_dict, trees))
