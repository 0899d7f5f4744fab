"""A step that was not finite, made again from what `training.capture` kept of it."""

import math
from pathlib import Path
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


def find(folder: Path) -> Path:
    """Return a folder of `capture`, or the newest one in a run's folder."""
    if (folder / "state").is_dir():
        return folder
    found = sorted(folder.glob("nonfinite_*"))
    if not found:
        raise InputError(f"{folder} is no nonfinite_STEP, and holds none")
    return found[-1]


def faulty_inputs(captured: CapturedStep) -> list[str]:
    """Name what is not finite of the state and of the batch."""
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
    """Make the step in one precision, tell what comes out, and return whether it is finite."""
    config.model.dtype = dtype
    train, state = config.train, captured.state
    platform = platform_of(jax.local_devices())
    bundle = abstract(config.model, captured.table.num_classes, platform=platform)
    if jax.tree.map(jnp.shape, bundle.params) != jax.tree.map(jnp.shape, state.params):
        raise InputError("the settings given make another model than the one that was captured")
    part_loss = loss_function(bundle.graph, train)
    gradient = jax.value_and_grad(part_loss, has_aux=True)
    parts = train.accumulate
    batch = {
        key: jnp.asarray(x.reshape(parts, -1, *x.shape[1:]) if parts > 1 else x)
        for key, x in captured.batch.items()
    }

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
            print("  operation by operation all is finite: fused, they round another way")
    return finite
