"""The training run: resume or start, step, log, evaluate, save."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from segret_jax import config as configs
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.data.pipeline import batches_from, class_table, open_source, training_dataset
from segret_jax.data.sources import Source
from segret_jax.errors import InputError
from segret_jax.evaluation import results
from segret_jax.evaluation.evaluate import Result, evaluate
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.visualize import grid, save_png
from segret_jax.files import writing
from segret_jax.models.segret import SegRet
from segret_jax.training.checkpoint import Checkpoints
from segret_jax.training.initialise import initialise
from segret_jax.training.journal import Journal
from segret_jax.training.losses import check_class_weights
from segret_jax.training.optim import learning_rate_schedule, make_optimizer
from segret_jax.training.sharding import check_batch, make_mesh, shard_batch, shardings
from segret_jax.training.state import TrainState, new_state
from segret_jax.training.step import make_train_step

# Settings that may differ between the start of a run and its continuation.
MAY_CHANGE = (
    "data.root", "data.workers", "data.on_error", "train.log_every", "train.eval_every",
    "train.save_every", "train.keep_checkpoints", "train.max_bad_steps", "eval.pictures",
    "model.max_scores", "model.remat", "mesh.data", "mesh.fsdp",
)  # fmt: skip


class StopRequest:
    """Ctrl-C and SIGTERM ask for a clean stop after the current step; a second Ctrl-C kills."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@dataclass
class Run:
    """What stays the same while a run goes on."""

    config: Config
    workdir: Path
    table: ClassTable
    validation: Source
    graph: nnx.GraphDef[SegRet]
    checkpoints: Checkpoints
    journal: Journal
    stop: StopRequest


def train(config: Config, workdir: Path) -> Result | None:
    """Train `config` in `workdir`, continuing what is there; return the last evaluation.

    Returns None if the run was stopped before its end. Raises InputError for anything that the
    user can mend: data, config, another run's folder, a loss that is not finite.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    table = class_table(config.data)
    check_class_weights(config.train, table.num_classes)
    training = open_source(config.data, "training")
    validation = open_source(config.data, "validation")
    model = initialise(config, table, workdir)  # which may refuse: before the folder is claimed
    _claim(workdir, config)
    optimizer = make_optimizer(config.optim, model.params, config.train.steps)
    train_step = make_train_step(model.graph, optimizer, config.train, mesh)

    checkpoints = Checkpoints(workdir, config, table)
    averaged = config.train.ema_decay > 0
    state = new_state(model.params, model.batch_stats, optimizer, averaged=averaged)
    state = jax.device_put(state, shardings(state, mesh))
    if checkpoints.latest_step is not None:
        state = checkpoints.restore_latest(state)
    start = int(state.step)
    dataset = training_dataset(
        training,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = batches_from(dataset, start, workers=config.data.workers)

    journal = Journal(workdir, steps=config.train.steps, start=start)
    with closing(checkpoints), closing(batches), journal, StopRequest() as stop:
        run = Run(config, workdir, table, validation, model.graph, checkpoints, journal, stop)
        _introduce(run, mesh, start, model.notes)
        result, log = None, StepLog(run)
        for step in range(start + 1, config.train.steps + 1):
            with _saving_on_faulty_data(run, state):
                batch = next(batches)
            log.count_skipped(batch.pop("skipped"))
            state, metrics = train_step(state, shard_batch(batch, mesh, config.train.accumulate))
            log.add(metrics)
            is_evaluation = step % config.train.eval_every == 0 or step == config.train.steps
            if is_evaluation or step % config.train.log_every == 0:
                log.write(step, state, dataset)
            if is_evaluation:
                with _saving_on_faulty_data(run, state):
                    result = _evaluate_and_save(run, state)
            elif step % config.train.save_every == 0:
                _refuse_if_not_finite(run, state, dataset)
                checkpoints.save(state)
            if stop.requested and (step < config.train.steps or result is None):
                _refuse_if_not_finite(run, state, dataset)
                _save_and_stop(run, state)
                return None
        return result or _evaluate_and_save(run, state)  # or: the run was complete before


class StepLog:
    """Collects the steps' metrics on the device; the host reads them at log steps only."""

    def __init__(self, run: Run):
        self.run = run
        self.schedule = learning_rate_schedule(run.config.optim, run.config.train.steps)
        self.pending: list[dict[str, jax.Array]] = []
        self.skipped = 0

    def count_skipped(self, skipped: np.ndarray) -> None:
        """Add up the samples that could not be read (data.on_error=skip)."""
        self.skipped += int(skipped.sum())

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keep one step's metrics.

        Waits for the step before the last two: the device always has work queued, yet batches do
        not pile up in its memory, and the progress bar tells the truth.
        """
        self.pending.append(metrics)
        if len(self.pending) > 2:
            jax.block_until_ready(self.pending[-3])
        self.run.journal.tick()

    def write(self, step: int, state: TrainState, dataset: grain.MapDataset) -> None:
        """Record the means since the last log step; raise InputError if a step was not finite."""
        values = jax.device_get(self.pending)
        self.pending = []
        _refuse_if_not_finite(self.run, state, dataset)
        good = [v for v in values if np.isfinite(v["loss"])]
        means = {name: float(np.mean([v[name] for v in good])) for name in values[0]}
        means["learning_rate"] = float(self.schedule(step - 1))
        skipped = {"skipped_samples": self.skipped, "skipped_steps": int(state.num_bad)}
        self.run.journal.train(step, means | skipped)


def _claim(workdir: Path, config: Config) -> None:
    """Make `workdir` this config's folder, or refuse one that holds another config's run."""
    saved = workdir / "config.json"
    if saved.exists():
        theirs, ours = configs.flatten(configs.load(saved)), configs.flatten(config)
        different = [k for k in ours if theirs[k] != ours[k] and k not in MAY_CHANGE]
        if different:
            listed = ", ".join(f"{k} ({theirs[k]} there, {ours[k]} here)" for k in different)
            raise InputError(
                f"{workdir} holds a run of another config: {listed}. "
                "Choose another --workdir, or delete that folder"
            )
    with writing(f"to --workdir {workdir}"):
        (workdir / "pictures").mkdir(parents=True, exist_ok=True)
        configs.save(config, saved)


def _introduce(run: Run, mesh: Mesh, start: int, notes: tuple[str, ...]) -> None:
    model, device = run.config.model, mesh.devices.flat[0]
    run.journal.say(
        f"segret_{model.variant} on {run.config.data.dataset}, {run.table.num_classes} classes; "
        f"{mesh.size} x {device.device_kind}, {model.dtype}, "
        f"matmul precision {model.matmul_precision}; in {run.workdir}"
        + (f"; continuing at step {start}" if start else "")
    )
    for note in notes:
        run.journal.say(note)


def _evaluate_and_save(run: Run, state: TrainState) -> Result | None:
    """Score the validation set, draw the picture, save a checkpoint."""
    predictor = Predictor(run.graph, **state.model, config=run.config.eval)
    result = evaluate(
        predictor,
        run.validation,
        run.table,
        num_pictures=run.config.eval.pictures,
        skip_faulty=run.config.data.on_error == "skip",
        cancelled=lambda: run.stop.requested,
    )
    if result is None:
        return None
    step, metrics = int(state.step), result.metrics
    scores = {"mIoU": metrics.mean_iou, "mAcc": metrics.mean_acc, "aAcc": metrics.all_acc}
    run.journal.evaluation(step, scores, result.summary())
    run.checkpoints.save(state, mean_iou=metrics.mean_iou)
    try:
        _write_result(run, predictor, result, step)
    except InputError as error:  # the checkpoint is what matters
        run.journal.say(f"{error}; training goes on")
    return result


def _write_result(run: Run, predictor: Predictor, result: Result, step: int) -> None:
    """Write the scores with their protocol, and the picture."""
    results.save(
        run.workdir,
        result,
        predictor,
        run.validation,
        config=run.config,
        table=run.table,
        checkpoint=Path(run.checkpoints.folder.name, str(step)),
    )
    if result.pictures:
        title = f"step {step}, mIoU {100 * result.metrics.mean_iou:.1f} %"
        picture = grid(result.pictures, run.table, title=title)
        save_png(picture, run.workdir / "pictures" / f"step_{step:06d}.png")


@contextmanager
def _saving_on_faulty_data(run: Run, state: TrainState) -> Iterator[None]:
    """Keep the steps made so far where a file ends the run."""
    try:
        yield
    except InputError:
        run.checkpoints.save(state)
        raise


def _save_and_stop(run: Run, state: TrainState) -> None:
    saved = run.checkpoints.save(state)
    where = f"saved in {run.checkpoints.folder}" if saved else "NOT saved"
    run.journal.say(
        f"stopped at step {int(state.step)}, {where}; run the same command again to go on"
    )


def _refuse_if_not_finite(run: Run, state: TrainState, dataset: grain.MapDataset) -> None:
    """Save the state before a non-finite step, and that step's batch; raise InputError."""
    step = int(state.bad_step)
    if step < 0:
        return
    kept = []
    if run.checkpoints.save(state):
        kept.append(f"the state before it is saved in {run.checkpoints.folder / str(step)}")
    file = run.workdir / f"nonfinite_batch_{step:06d}.npz"
    with suppress(OSError):  # a full disk must not hide what happened
        np.savez(file, **dataset[step])
        kept.append(f"its batch in {file}")
    raise InputError(
        f"loss or gradient of step {step} is not finite; {', '.join(kept) or 'nothing was saved'}. "
        "Begin in another --workdir with a lower optim.learning_rate, a longer warmup or "
        "model.dtype=float32"
    )
