"""The train state: a plain pytree, everything that a checkpoint must hold."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation, OptState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """After `step` steps, of which `num_bad` were not finite and skipped.

    `bad_step` is the one that was not finite and ended the updates, or −1. Trees of shapes and of
    shardings have this class, too.
    """

    step: Any  # int32 [], as the next two
    num_bad: Any
    bad_step: Any
    params: Any  # nested dicts of float32 arrays
    batch_stats: Any
    opt_state: OptState
    ema: Any  # {"params", "batch_stats"}, averaged over the steps; None if that is off

    @property
    def model(self) -> dict[str, Any]:
        """The parameters and batch statistics to evaluate and to use: the average if there is."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def new_state(
    params: Any, batch_stats: Any, optimizer: GradientTransformation, *, averaged: bool = False
) -> TrainState:
    """Return the state before the first step, with the weights' average if `averaged`."""
    model = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        num_bad=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), -1, jnp.int32),
        **model,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, model) if averaged else None,  # no buffer is donated twice
    )
