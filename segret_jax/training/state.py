"""The train state: a plain pytree, everything that a checkpoint must hold."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from segret_jax.config import Config, ModelConfig
from segret_jax.models.rmt import VARIANTS, Classifier
from segret_jax.models.segret import SegRet, encoder_options
from segret_jax.training.optim import make_optimizer


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
    opt_state: optax.OptState
    ema: Any  # {"params", "batch_stats"}, averaged over the steps; None if that is off

    @property
    def model(self) -> dict[str, Any]:
        """The parameters and batch statistics to evaluate and to use: the average if there is."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


Parts = tuple[nnx.GraphDef[Any], Any, Any]  # of a SegRet, or a Classifier if the task is that


def build(config: ModelConfig, num_classes: int, *, seed: int) -> Parts:
    """Initialise a model; return its graph, parameters and batch statistics (nested dicts)."""
    return _parts(_model(config, num_classes, nnx.Rngs(seed)))


def abstract(config: ModelConfig, num_classes: int) -> Parts:
    """Return what `build` does with shapes in the place of arrays, in a fraction of the time."""

    def initialise() -> SegRet | Classifier:
        rngs = nnx.Rngs(0)
        # A traced counter makes every draw search the whole trace so far: 7 s for large.
        zero: Any = np.zeros((), np.uint32)
        rngs.default.count = nnx.RngCount(zero, tag="default")
        return _model(config, num_classes, rngs)

    return _parts(nnx.eval_shape(initialise))


def abstract_state(
    config: Config, num_classes: int
) -> tuple[nnx.GraphDef[Any], optax.GradientTransformation, TrainState]:
    """Return a run's graph, its optimizer and the shapes of its state."""
    graph, params, batch_stats = abstract(config.model, num_classes)
    optimizer = make_optimizer(config.optim, config.train.steps)

    def create(params: Any, batch_stats: Any) -> TrainState:
        averaged = config.train.ema_decay > 0
        return new_state(params, batch_stats, optimizer, averaged=averaged)

    return graph, optimizer, jax.eval_shape(create, params, batch_stats)


def _model(config: ModelConfig, num_classes: int, rngs: nnx.Rngs) -> SegRet | Classifier:
    if config.task == "segmentation":
        return SegRet(config, num_classes, rngs=rngs)
    return Classifier(
        VARIANTS[config.variant],
        num_classes=num_classes,
        token_head=config.token_head,
        options=encoder_options(config),
        rngs=rngs,
    )


def model_name(config: ModelConfig) -> str:
    """Return what to call the model in messages: segret_tiny, or rmt_tiny for the classifier."""
    return f"{'segret' if config.task == 'segmentation' else 'rmt'}_{config.variant}"


def _parts(model: SegRet | Classifier) -> Parts:
    graph, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, trees)
    return graph, params, batch_stats


def new_state(
    params: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
    *,
    averaged: bool = False,
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
