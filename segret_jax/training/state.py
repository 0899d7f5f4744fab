"""The train state: a plain pytree, everything that a checkpoint must hold."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.models.segret import SegRet


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` updates have been made; `bad_step` is the first non-finite one, or −1."""

    step: jax.Array
    bad_step: jax.Array
    params: Any  # nested dicts of float32 arrays
    batch_stats: Any
    opt_state: optax.OptState


Parts = tuple[nnx.GraphDef[SegRet], Any, Any]


def build(config: ModelConfig, num_classes: int, *, seed: int) -> Parts:
    """Initialise a model; return its graph, parameters and batch statistics (nested dicts)."""
    return _parts(SegRet(config, num_classes, rngs=nnx.Rngs(seed)))


def abstract(config: ModelConfig, num_classes: int) -> Parts:
    """Return what `build` does with shapes in the place of arrays, in a fraction of the time."""

    def initialise() -> SegRet:
        rngs = nnx.Rngs(0)
        # A traced counter makes every draw search the whole trace so far: 7 s for large.
        zero: Any = np.zeros((), np.uint32)
        rngs.default.count = nnx.RngCount(zero, tag="default")
        return SegRet(config, num_classes, rngs=rngs)

    return _parts(nnx.eval_shape(initialise))


def _parts(model: SegRet) -> Parts:
    graph, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, trees)
    return graph, params, batch_stats


def new_state(params: Any, batch_stats: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), -1, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
    )
