"""The train state: a plain pytree, everything that a checkpoint must hold."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
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


def build(
    config: ModelConfig, num_classes: int, *, seed: int
) -> tuple[nnx.GraphDef[SegRet], Any, Any]:
    """Initialise a model; return its graph, parameters and batch statistics (nested dicts)."""
    model = SegRet(config, num_classes, rngs=nnx.Rngs(seed))
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def new_state(
    params: Any, batch_stats: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), -1, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
    )
