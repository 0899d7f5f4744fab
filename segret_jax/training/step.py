"""One training step: a jitted pure function of (state, batch) whose buffers are donated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segret_jax.config import TrainConfig
from segret_jax.models.segret import SegRet
from segret_jax.training.losses import cross_entropy
from segret_jax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]


def make_train_step(
    graph: nnx.GraphDef[SegRet],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh,
    *,
    regularize: bool = True,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the step for a batch {"image" [b, h, w, 3], "label" [b, h, w]} sharded over `data`.

    The state is replicated. Means over the batch (loss, batch norm) are over the whole of it,
    whatever the number of devices. Drop path and dropout draw from (seed, step) alone;
    `regularize=False` leaves them out.
    """

    def loss_of(params: Any, batch_stats: Any, batch: Batch, key: Array) -> tuple[Array, tuple]:
        model = nnx.merge(graph, params, batch_stats)
        rngs = nnx.Rngs(dropout=key) if regularize else None
        logits = model(batch["image"], train=True, rngs=rngs)
        loss, accuracy = cross_entropy(
            logits,
            batch["label"],
            normalizer=config.loss_normalizer,
            class_weights=config.class_weights,
            ohem_threshold=config.ohem_threshold,
            ohem_min_kept=config.ohem_min_kept,
        )
        return loss, (accuracy, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (loss, (accuracy, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, batch, key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updated = TrainState(
            step=state.step + 1,
            bad_step=state.bad_step,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        metrics = {"loss": loss, "accuracy": accuracy}
        return _advance_if(finite, state, updated), metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated, sharded),
        out_shardings=(replicated, replicated),
    )


def _advance_if(finite: Array, state: TrainState, updated: TrainState) -> TrainState:
    """Return `updated`, or on a non-finite step `state` with the step's index in `bad_step`.

    After that the state stays as it was before the bad step: the host, which looks only at its
    next log step, finds it unharmed.
    """
    advance = finite & (state.bad_step < 0)
    kept = jax.tree.map(lambda old, new: jnp.where(advance, new, old), state, updated)
    first_bad = jnp.where((state.bad_step < 0) & ~finite, state.step, state.bad_step)
    return TrainState(kept.step, first_bad, kept.params, kept.batch_stats, kept.opt_state)


def data_mesh() -> Mesh:
    """Return a mesh of all devices along `data`, over which batches are split."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
