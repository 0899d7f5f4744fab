"""A training run that ends on time, with a learning rate that does, too."""

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from segret_jax.checkpoint.state import TrainState, new_state
from segret_jax.config import Config, OptimConfig
from segret_jax.data.class_table import ClassTable
from segret_jax.data.pipeline import batches_from, class_table, open_source, training_dataset
from segret_jax.data.sources import Source
from segret_jax.evaluation.evaluate import Result, evaluate
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.factory import ModelBundle, build
from segret_jax.models.segret import FAMILY
from segret_jax.parallel.mesh import data_mesh
from segret_jax.parallel.sharding import gather_replicated, shard_batch, shard_state
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import compile_ahead, make_train_step

LOG_EVERY = 20  # steps, after which their number is estimated again
MANY = 2**30  # steps, until their number is estimated
WRITING = 10.0  # seconds, for the files


def timed_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Return the recipe's optimizer, whose number of steps is a part of its state.

    So it can change during a run without compiling the step again. The poly schedule goes to 0,
    which is `optim.min_learning_rate` of the recipe. State: (inner state, steps done, steps).
    """
    constant = dataclasses.replace(config, min_learning_rate=config.learning_rate)
    inner_optimizer = make_optimizer(constant, MANY, FAMILY)  # with the warmup alone

    def init(params: Any) -> tuple[Any, jax.Array, jax.Array]:
        return inner_optimizer.init(params), jnp.int32(0), jnp.int32(MANY)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        inner, count, steps = state
        updates, inner = inner_optimizer.update(grads, inner, params)
        share = (1 - count / steps) ** config.poly_power
        return jax.tree.map(lambda u: share * u, updates), (inner, count + 1, steps)

    return optax.GradientTransformation(init, update)


@dataclass
class Run:
    """A training run that ends on time."""

    config: Config
    deadline: float  # of `time.monotonic`
    max_steps: int
    count: int = 0
    total: int = MANY
    evaluation: float = 0.0  # seconds that the last one took
    losses: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)

    def train(self) -> Result:
        """Train until the time is up, evaluate; return the last evaluation."""
        config, mesh = self.config, data_mesh()
        table = class_table(config.data)
        training = open_source(config.data, "training")
        evaluator = _Scorer(config, table, open_source(config.data, "validation"))
        graph, params, batch_stats = build(config.model, table.num_classes, seed=0)
        optimizer = timed_optimizer(config.optim)
        step = make_train_step(graph, optimizer, config.train, mesh)
        state = shard_state(new_state(params, batch_stats, optimizer), mesh)
        dataset = training_dataset(
            training, config.data, batch_size=config.train.batch_size, seed=config.train.seed
        )
        with closing(batches_from(dataset, 0, workers=config.data.workers)) as raw:
            batches = _placed(raw, mesh)
            first = next(batches)
            model = gather_replicated(jax.tree.map(jnp.copy, state.model), mesh)
            with ThreadPoolExecutor(1) as pool:  # evaluation is compiled beside the step
                evaluation = pool.submit(evaluator.score, graph, model)
                compile_ahead(step, state, first)
                _, self.evaluation = evaluation.result()
            state = self._steps(step, state, batches, end=self._middle())
            result = self._score(evaluator, graph, state, mesh)
            half = self.count
            state = self._steps(step, state, batches, end=self._end())
        return self._score(evaluator, graph, state, mesh) if self.count > half else result

    def _end(self) -> float:
        """Return when the steps have to end, so that there is time for the last evaluation."""
        return self.deadline - 1.5 * self.evaluation - WRITING

    def _middle(self) -> float:
        """Return when half of the time is over that steps have beside another evaluation."""
        now = time.monotonic()
        return now + max(0.0, self._end() - self.evaluation - now) / 2

    def _score(
        self, evaluator: "_Scorer", graph: nnx.GraphDef[Any], state: TrainState, mesh: Mesh
    ) -> Result:
        self.model = gather_replicated(state.model, mesh)
        result, self.evaluation = evaluator.score(graph, self.model)
        self.scores.append({"step": self.count, "mIoU": 100 * result.metrics.mean_iou})
        return result

    def _steps(
        self, step: Any, state: TrainState, batches: Iterator[Any], *, end: float
    ) -> TrainState:
        """Make steps until `end`, or until the number of steps is reached."""
        begun, start, pending = time.monotonic(), self.count, []
        while self.count < min(self.total, self.max_steps) and time.monotonic() < end:
            state, metrics = step(state, next(batches))
            pending.append(metrics)
            self.count += 1
            if len(pending) > 2:  # bound the steps in flight
                jax.block_until_ready(pending[-3])
            if self.count % LOG_EVERY == 0 or self.count == self.max_steps:
                self._log(pending)
                seconds = (time.monotonic() - begun) / (self.count - start)
                state = self._with_total(state, seconds)
                pending = []
        if pending:
            self._log(pending)
        return jax.block_until_ready(state)

    def _log(self, pending: list[Any]) -> None:
        values = jax.device_get(pending)  # waits for the steps
        means = {k: sum(float(v[k]) for v in values) / len(values) for k in ("loss", "accuracy")}
        left = self.deadline - time.monotonic()
        self.losses.append({"step": self.count, "seconds_left": left, **means})

    def _with_total(self, state: TrainState, seconds: float) -> TrainState:
        """Set the number of steps to what the time allows; no fewer than up to the next log."""
        left = self._end() - time.monotonic()
        self.total = self.count + max(LOG_EVERY, int(left / seconds))
        inner, count, steps = state.opt_state
        total = jax.device_put(jnp.int32(self.total), steps.sharding)
        return dataclasses.replace(state, opt_state=(inner, count, total))


@dataclass(frozen=True)
class _Scorer:
    config: Config
    table: ClassTable
    validation: Source

    def score(self, graph: nnx.GraphDef[Any], model: dict[str, Any]) -> tuple[Result, float]:
        """Evaluate; return the result and the seconds that it took."""
        begun = time.monotonic()
        predictor = Predictor.from_config(ModelBundle(graph, **model), self.config)
        pictures = self.config.eval.pictures
        result = evaluate(predictor, self.validation, self.table, num_pictures=pictures)
        assert result  # nothing cancels it
        return result, time.monotonic() - begun


def _placed(batches: Iterator[dict[str, Any]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    for batch in batches:
        batch.pop("skipped")
        yield shard_batch(batch, mesh)
