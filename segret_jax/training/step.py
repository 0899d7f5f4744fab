"""One training step: a jitted pure function of (state, batch) whose buffers are donated."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segret_jax.checkpoint.packing import pack
from segret_jax.checkpoint.state import TrainState
from segret_jax.config import TrainConfig
from segret_jax.models.layers import SampleKeys
from segret_jax.parallel.sharding import batch_sharding, shardings
from segret_jax.run.memory import trim_host_memory
from segret_jax.training.losses import cross_entropy, loss_normalizer

Batch = dict[str, Array]
Metrics = dict[str, Array]


def make_train_step(
    graph: nnx.GraphDef[Any],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh,
    *,
    regularize: bool = True,
) -> jax.stages.Wrapped:
    """Build the jitted training step (state, batch) -> (state, metrics), which donates the state.

    Means over the batch (loss, batch norm) are over the global batch, whatever the number of
    devices. Drop path and dropout draw from (seed, step, index of the sample in the global batch).

    With `config.accumulate` = a > 1 the gradient is the mean of the gradients of a parts, computed
    one after another. It equals the gradient of the whole batch, except that batch norm normalizes
    each part by its own statistics and updates the running ones a times, and that OHEM selects
    pixels within each part.

    Args:
        graph: The model's graph.
        optimizer: The optimizer of `make_optimizer`.
        config: Loss, accumulation, averaging and seed.
        mesh: The devices; state and batch are sharded as in `parallel.sharding`.
        regularize: Whether to apply drop path and dropout.

    Returns:
        The step. Its batch is {"image" float32 [b, h, w, 3], "label" uint8 [b, h, w], "index"
        int32 [b]}, with accumulation [a, b/a, ...]; "index" is needed only to regularize.
    """
    loss = loss_function(graph, config, regularize=regularize)
    part_gradient = jax.value_and_grad(loss, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = lax.with_sharding_constraint(batch, batch_sharding(mesh, config.accumulate))
        # Gathered for their use, or the partitioner would split activations as the parameters are.
        whole = lax.with_sharding_constraint(state.params, NamedSharding(mesh, PartitionSpec()))
        gathered = replace(state, params=whole)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for kernels to split by
            grads, batch_stats, metrics = batch_gradient(part_gradient, gathered, batch, config)
        grads = lax.with_sharding_constraint(grads, shardings(grads, mesh))
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        model, count = {"params": params, "batch_stats": batch_stats}, state.step + 1
        ema = _update_average(state, model, config.ema_decay)
        updated = replace(state, step=count, opt_state=opt_state, ema=ema, **model)
        metrics["gradient_norm"] = optax.tree.norm(pack(grads))
        metrics["update_norm"] = optax.tree.norm(pack(updates))
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        state = _advance_if_finite(finite, state, updated, max_bad_steps=config.max_bad_steps)
        return lax.with_sharding_constraint(state, shardings(state, mesh)), metrics

    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options(mesh))


def compile_ahead(step: jax.stages.Wrapped, state: TrainState, batch: Any) -> jax.stages.Compiled:
    """Compile a step for these arguments; JAX caches it, so the first call does not compile again.

    Freed memory is returned to the system before and after. Otherwise the peak of a run on CPU
    would be the sum of the memory for initialization, compilation and steps.
    """
    trim_host_memory()
    compiled = step.lower(state, batch).compile()
    trim_host_memory()
    return compiled


def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
    """Return XLA's options for a training step.

    On CPU it orders operations by the memory they need: by default each starts as early as it can,
    and tensors that the backward pass recomputes would be held from the forward pass on. It also
    analyzes which operations overwrite a buffer; otherwise it copies the whole state before the
    update.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_copy_insertion_use_region_analysis": True,
    }


def loss_function(
    graph: nnx.GraphDef[Any], config: TrainConfig, *, regularize: bool = True
) -> Callable:
    """Return the loss of a part of a batch, with its accuracy and batch statistics."""

    def loss_of(params: Any, batch_stats: Any, part: Batch, key: Array, pixels: Array) -> Any:
        model = nnx.merge(graph, params, batch_stats)
        keys = SampleKeys(key, part["index"]) if regularize else None
        logits = model(part["image"], train=True, keys=keys)
        with jax.named_scope("loss"):
            loss, accuracy = cross_entropy(
                logits,
                part["label"],
                pixels,
                class_weights=config.class_weights,
                ohem_threshold=config.ohem_threshold,
                ohem_min_kept=config.ohem_min_kept,
            )
        return loss, (accuracy, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    return loss_of


def batch_gradient(
    part_gradient: Callable, state: TrainState, batch: Batch, config: TrainConfig
) -> tuple[Any, Any, Metrics]:
    """Return the gradient of a whole batch, the new batch statistics, loss and accuracy."""
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    pixels = loss_normalizer(batch["label"], config.loss_normalizer) / config.accumulate

    def of_part(batch_stats: Any, part: Batch) -> tuple[Any, Any]:
        (loss, (accuracy, batch_stats)), grads = part_gradient(
            state.params, batch_stats, part, key, pixels
        )
        return batch_stats, (grads, {"loss": loss, "accuracy": accuracy})

    if config.accumulate == 1:
        batch_stats, (grads, metrics) = of_part(state.batch_stats, batch)
        return grads, batch_stats, metrics

    def add(carry: Any, part: Batch) -> tuple[Any, None]:
        sums, batch_stats = carry
        batch_stats, found = of_part(batch_stats, part)
        return (jax.tree.map(jnp.add, sums, found), batch_stats), None

    zero = jnp.zeros((), jnp.float32)
    sums = jax.tree.map(jnp.zeros_like, state.params), {"loss": zero, "accuracy": zero}
    (sums, batch_stats), _ = lax.scan(add, (sums, state.batch_stats), batch)
    grads, metrics = jax.tree.map(lambda x: x / config.accumulate, sums)
    return grads, batch_stats, metrics


def _update_average(state: TrainState, model: Any, decay: float) -> Any:
    """Return the exponential moving average of `model`, or None without one.

    Its decay grows with the steps, min(decay, (1 + t)/(10 + t)), so that it soon forgets where the
    weights started.
    """
    if state.ema is None:
        return None
    decay_now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return jax.tree.map(lambda old, new: old + (1 - decay_now) * (new - old), state.ema, model)


def _advance_if_finite(
    finite: Array, state: TrainState, updated: TrainState, *, max_bad_steps: int
) -> TrainState:
    """Return `updated`, or after a non-finite step what was before it.

    Up to `max_bad_steps` such steps are skipped: counted, and all else but `step` as before. At
    the next one `bad_step` becomes its index, and from then on nothing changes: the host, which
    looks only at its next log step, finds the state from before that step unharmed.
    """
    alive = state.bad_step < 0
    skipped = alive & ~finite & (state.num_bad < max_bad_steps)
    kept = jax.tree.map(lambda old, new: jnp.where(alive & finite, new, old), state, updated)
    stopped = alive & ~finite & ~skipped
    return replace(
        kept,
        step=jnp.where(skipped, state.step + 1, kept.step),
        num_bad=state.num_bad + skipped,
        bad_step=jnp.where(stopped, state.step, state.bad_step),
    )
