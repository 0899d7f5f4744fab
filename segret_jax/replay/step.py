"""Replay of a training step that was not finite and was saved by `training.capture`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segret_jax.checkpoint.packing import moments
from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.models.factory import abstract
from segret_jax.models.kernels import platform_of
from segret_jax.replay.nonfinite import nonfinite
from segret_jax.training.capture import CapturedStep
from segret_jax.training.step import batch_gradient, loss_function
from segret_jax.trees import named_leaves

PRECISIONS = ("float32", "bfloat16")


def nonfinite_inputs(captured: CapturedStep) -> list[str]:
    """Return the names of arrays of the state and the batch that are not finite."""
    trees = {
        "parameters": captured.state.params,
        "batch statistics": captured.state.batch_stats,
        "optimizer's state": moments(captured.state.opt_state, captured.state.params),
        "batch": captured.batch,
    }
    return [
        f"{name}: {path}"
        for name, tree in trees.items()
        for path, leaf in named_leaves(tree).items()
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all()
    ]


def replay(captured: CapturedStep, config: Config, dtype: str) -> bool:
    """Run a captured step in one precision and print the result and its faults.

    Args:
        captured: The state and the batch.
        config: The settings of model and training, perhaps others than those captured.
        dtype: One of `PRECISIONS`.

    Returns:
        Whether loss and gradient are finite.

    Raises:
        InputError: `config` makes another model than the captured one.
    """
    config.model.dtype = dtype
    train, state = config.train, captured.state
    platform = platform_of(jax.local_devices())
    bundle = abstract(config.model, captured.table.num_classes, platform=platform)
    if jax.tree.map(jnp.shape, bundle.params) != jax.tree.map(jnp.shape, state.params):
        raise InputError("the settings given make another model than the one that was captured")
    gradient = jax.value_and_grad(loss_function(bundle.graph, train), has_aux=True)
    lead = (train.accumulate, -1) if train.accumulate > 1 else (-1,)
    batch = {k: jnp.asarray(x.reshape(*lead, *x.shape[1:])) for k, x in captured.batch.items()}

    def step(state: Any, batch: Any) -> Any:
        grads, _, metrics = batch_gradient(gradient, state, batch, train)
        with jax.named_scope("gradient_norm"):
            return metrics["loss"], optax.tree.norm(grads)

    loss, norm = map(float, jax.jit(step)(state, batch))
    finite = math.isfinite(loss) and math.isfinite(norm)
    print(f"{dtype}: loss {loss:.6g}, gradient norm {norm:.6g}")
    if not finite:
        faults = nonfinite(step, state, batch)
        for number, fault in enumerate(faults, start=1):
            print(f"  {number}. {fault}")
        if not faults:
            print("  operation by operation all is finite: fused, they round differently")
    return finite
