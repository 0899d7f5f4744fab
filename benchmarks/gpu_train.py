"""Train configs/camvid_tiny.py on a GPU for a given time.

    python -m benchmarks.gpu_train --out DIR --root CAMVID --seconds 420
    python -m benchmarks.gpu_train --out DIR --dry-run     # six steps of a toy model, any device

The learning rate goes down to its end in the time there is: the number of steps is estimated from
the time of the steps so far. DIR gets six files: result.json (scores, curve, settings), curve.png,
overlays.png, and the weights as float16 safetensors in parts of at most 15 MB with their index.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from benchmarks import curve, sharded
from benchmarks.gpu import results, toy
from benchmarks.machine import machine
from configs import camvid_tiny
from segret_jax import cli, compilation
from segret_jax.config import Config, OptimConfig
from segret_jax.convert.exporting import export_tensors
from segret_jax.data.class_table import ClassTable
from segret_jax.data.pipeline import batches_from, class_table, open_source, training_dataset
from segret_jax.data.sources import Source
from segret_jax.evaluation.evaluate import Picture, Result, evaluate
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.visualize import overlay, save_png, with_legend
from segret_jax.training.optim import make_optimizer
from segret_jax.training.sharding import data_mesh, place, shard_batch, whole_here
from segret_jax.training.state import TrainState, build, new_state
from segret_jax.training.step import compile_ahead, make_train_step

LOG_EVERY = 20  # steps, after which their number is estimated again
MANY = 2**30  # steps, until their number is estimated
WRITING = 10.0  # seconds, for the files


def main(argv: list[str]) -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_train"), help="of the results")
    parser.add_argument("--root", default="", help="folder of CamVid; default: data/camvid")
    parser.add_argument("--seconds", type=float, default=420, help="of the whole command")
    parser.add_argument("--dry-run", action="store_true", help="six steps of a toy model")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    compilation.use_cache()
    config = dry_config() if args.dry_run else recipe(args.root)
    run = Run(config, begun + args.seconds, max_steps=6 if args.dry_run else 10**9)
    result = run.train()
    write(args.out, run, result, {"dry_run": args.dry_run, "seconds": time.monotonic() - begun})
    print(f"{run.count} steps, {result.summary()}; results in {args.out}")


def recipe(root: str) -> Config:
    """Return camvid_tiny in bfloat16, with a warmup for a run of minutes."""
    config = camvid_tiny.get_config()
    config.data.root = root
    config.model.dtype = "bfloat16"
    config.optim.warmup_steps = 200
    return config


def dry_config() -> Config:
    """Return a config of the same kind that any machine runs in seconds."""
    toy.add()
    jax.config.update("jax_disable_most_optimizations", True)  # a few steps: compile fast
    config = recipe("")
    config.data.dataset, config.data.workers = "synthetic", 0
    config.data.crop = config.data.synthetic_size = config.data.resize_base = (32, 32)
    config.data.synthetic_train, config.data.synthetic_validation = 8, 2
    config.model.variant, config.model.dtype = toy.NAME, "float32"
    config.optim.warmup_steps = 2
    config.train.batch_size = 2 * jax.device_count()
    config.eval.resize_target, config.eval.pictures = (32, 32), 2
    return config


def timed_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Return the recipe's optimizer, whose number of steps is a part of its state.

    So it can change during a run without compiling the step again. The poly schedule goes to 0,
    which is `optim.min_learning_rate` of the recipe. State: (inner state, steps done, steps).
    """
    constant = dataclasses.replace(config, min_learning_rate=config.learning_rate)
    inner_optimizer = make_optimizer(constant, MANY)  # with the warmup alone

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
        scorer = _Scorer(config, table, open_source(config.data, "validation"))
        graph, params, batch_stats = build(config.model, table.num_classes, seed=0)
        optimizer = timed_optimizer(config.optim)
        step = make_train_step(graph, optimizer, config.train, mesh)
        state = place(new_state(params, batch_stats, optimizer), mesh)
        dataset = training_dataset(
            training, config.data, batch_size=config.train.batch_size, seed=config.train.seed
        )
        with closing(batches_from(dataset, 0, workers=config.data.workers)) as raw:
            batches = _placed(raw, mesh)
            first = next(batches)
            model = whole_here(jax.tree.map(jnp.copy, state.model), mesh)
            with ThreadPoolExecutor(1) as pool:  # evaluation is compiled beside the step
                evaluation = pool.submit(scorer.score, graph, model)
                compile_ahead(step, state, first)
                _, self.evaluation = evaluation.result()
            state = self._steps(step, state, batches, end=self._middle())
            result = self._score(scorer, graph, state, mesh)
            half = self.count
            state = self._steps(step, state, batches, end=self._end())
        return self._score(scorer, graph, state, mesh) if self.count > half else result

    def _end(self) -> float:
        """Return when the steps have to end, so that there is time for the last evaluation."""
        return self.deadline - 1.5 * self.evaluation - WRITING

    def _middle(self) -> float:
        """Return when half of the time is over that steps have beside another evaluation."""
        now = time.monotonic()
        return now + max(0.0, self._end() - self.evaluation - now) / 2

    def _score(
        self, scorer: "_Scorer", graph: nnx.GraphDef[Any], state: TrainState, mesh: Mesh
    ) -> Result:
        self.model = whole_here(state.model, mesh)
        result, self.evaluation = scorer.score(graph, self.model)
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
            if self.count % LOG_EVERY == 0 or self.count == self.max_steps:
                self._log(pending)
                seconds = (time.monotonic() - begun) / (self.count - start)
                state = self._with_total(state, seconds)
                pending = []
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
        predictor = Predictor(graph, **model, config=self.config.eval)
        pictures = self.config.eval.pictures
        result = evaluate(predictor, self.validation, self.table, num_pictures=pictures)
        assert result  # nothing cancels it
        return result, time.monotonic() - begun


def _placed(batches: Iterator[dict[str, Any]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    for batch in batches:
        batch.pop("skipped")
        yield shard_batch(batch, mesh)


def write(folder: Path, run: Run, result: Result, facts: dict[str, Any]) -> None:
    """Write the six files."""
    table = class_table(run.config.data)
    tensors = export_tensors(
        run.config.model, table.num_classes, run.model["params"], run.model["batch_stats"]
    )
    sharded.write(folder, tensors)
    losses = [(x["step"], x["loss"]) for x in run.losses]
    save_png(curve.draw(losses, [(x["step"], x["mIoU"]) for x in run.scores]), folder / "curve.png")
    save_png(overlays(result.pictures, table), folder / "overlays.png")
    content = {
        **facts, **machine(), "commit": results.commit(), "steps": run.count,
        "metrics": result.to_dict(table), "evaluations": run.scores, "curve": run.losses,
        "config": dataclasses.asdict(run.config),
    }  # fmt: skip
    text = json.dumps(content, indent=1) + "\n"
    (folder / "result.json").write_text(text, encoding="utf-8")


def overlays(pictures: list[Picture], table: ClassTable) -> np.ndarray:
    """Draw label and prediction over each image, all of one size, and a legend below."""
    rows = [
        np.concatenate([overlay(image, label, table), overlay(image, pred, table)], axis=1)
        for image, label, pred in pictures
    ]
    labels = [labels for _, *both in pictures for labels in both]
    return with_legend(np.concatenate(rows), table, labels)


if __name__ == "__main__":
    cli.run(main)
