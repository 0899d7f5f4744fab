"""The training run: resume or start, step, log, evaluate, save."""

import sys
import time
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from segret_jax.checkpoint.manager import Checkpoints
from segret_jax.checkpoint.state import TrainState, new_state
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.data.learnable import check_class_table, check_samples
from segret_jax.data.pipeline import batches_from, class_table, open_source, training_dataset
from segret_jax.data.sources import Source
from segret_jax.errors import InputError
from segret_jax.evaluation.evaluate import Result
from segret_jax.models.config import model_name
from segret_jax.models.factory import ModelBundle
from segret_jax.models.families import get_family
from segret_jax.models.kernels import platform_of
from segret_jax.parallel import processes
from segret_jax.parallel.mesh import check_batch, make_mesh
from segret_jax.parallel.sharding import shard_batch, shard_state
from segret_jax.report import page as report
from segret_jax.run import description
from segret_jax.run.compilation import expected_compilation
from segret_jax.run.description import Recipe
from segret_jax.run.logger import RunLogger
from segret_jax.run.memory import machine_of
from segret_jax.run.profiler import Profiler
from segret_jax.run.stop import StopRequest
from segret_jax.run.watchdog import Watchdog
from segret_jax.run.workdir import claim_workdir
from segret_jax.training import capture, sizing
from segret_jax.training.evaluator import Evaluator
from segret_jax.training.forecast import check_memory
from segret_jax.training.initialization import initialize
from segret_jax.training.losses import check_class_weights
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import compile_ahead, make_train_step
from segret_jax.training.step_log import StepLog


class Data(NamedTuple):
    """What a run learns from and is evaluated on."""

    table: ClassTable
    training: Source
    validation: Source


@dataclass
class Run:
    """The parts of a run that do not change from step to step."""

    config: Config
    workdir: Path
    table: ClassTable
    mesh: Mesh
    dataset: grain.MapDataset
    batches: Iterator[dict[str, np.ndarray]]
    train_step: jax.stages.Wrapped
    checkpoints: Checkpoints
    evaluator: Evaluator
    logger: RunLogger
    log: StepLog
    profiler: Profiler
    stop: StopRequest
    watchdog: Watchdog


def train(
    config: Config, workdir: Path, *, profile: Container[int] = (), wandb_project: str = "",
    recipe: Recipe | None = None,
) -> Result | None:  # fmt: skip
    """Train a model, or continue the run in `workdir`.

    Args:
        config: Model, data, optimizer and schedule.
        workdir: The run's folder: checkpoints, logs, scores and pictures.
        profile: The steps to trace for xprof, counted from 1.
        wandb_project: A project of Weights & Biases to log to; "" for none.
        recipe: What `config` was made from; the report lists the settings that differ.

    Returns:
        The last evaluation; None if the run was stopped before its end.

    Raises:
        InputError: Something that the user can correct: the data, the config, a folder that holds
            another run, or a loss that is not finite.
    """
    mesh, data = make_mesh(config.mesh), _open_data(config)
    machine, num_classes = machine_of(mesh), data.table.num_classes
    sources = data.training, data.validation
    config, sizes = sizing.resolve(config, workdir, machine, *sources, num_classes)
    check_batch(config, mesh)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(mesh, workdir))
        platform = platform_of(mesh.devices.flat)
        initial = initialize(config, data.table, workdir, platform=platform)
        memory = check_memory(config, machine, initial.bundle.num_params, num_classes)
        # After all checks, so that a rejected run leaves no folder.
        mark = stack.enter_context(claim_workdir(workdir, config))
        stop.on_quit = partial(mark, "stopped")
        if processes.is_primary():
            stack.push(partial(_report_end, workdir, mark))
            description.try_write(workdir, recipe)
        options: Any = {"profile": profile, "wandb_project": wandb_project}
        run, state = _open_run(stack, config, workdir, data, mesh, initial.bundle, stop, **options)
        _log_run_description(run, int(state.step), (*sizes, memory, *initial.notes))
        result = _train(run, state)
        with run.watchdog.phase("save"):
            is_saved = run.checkpoints.finish()
        if result and not is_saved:
            raise InputError("the last checkpoint was not saved: run the same command again")
        mark("finished" if result else "stopped")
        return result


def _report_end(
    workdir: Path, mark: Callable[[str], None], kind: object, error: object, trace: object
) -> None:
    """Write the report when the run ends, however it does."""
    if kind:
        mark("failed")
    report.try_write(workdir, print)


def _open_data(config: Config) -> Data:
    table = class_table(config.data)
    check_class_table(table)
    check_class_weights(config.train, table.num_classes)
    training = open_source(config.data, "training")
    check_samples(training, skip_faulty=config.data.on_error == "skip")
    return Data(table, training, open_source(config.data, "validation"))


def _open_run(
    stack: ExitStack, config: Config, workdir: Path, data: Data, mesh: Mesh, bundle: ModelBundle,
    stop: StopRequest, *, profile: Container[int], wandb_project: str,
) -> tuple[Run, TrainState]:  # fmt: skip
    """Restore or initialize the state, and open the run's inputs and outputs."""
    optimizer = make_optimizer(config.optim, config.train.steps, get_family(config.model.family))
    train_step = make_train_step(bundle.graph, optimizer, config.train, mesh)
    checkpoints = Checkpoints(workdir, config, data.table, data.training)
    stack.enter_context(closing(checkpoints))
    state = new_state(*bundle.variables, optimizer, averaged=config.train.ema_decay > 0)
    state = shard_state(state, mesh)
    state = checkpoints.restore_latest(state) or state
    start = int(state.step)
    dataset = training_dataset(
        data.training,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = batches_from(dataset, start, workers=config.data.workers)
    stack.enter_context(closing(batches))
    logger = RunLogger(
        workdir, steps=config.train.steps, start=start, config=asdict(config),
        images_per_step=config.train.batch_size, wandb_project=wandb_project,
        active=processes.is_primary(),
    )  # fmt: skip
    stack.enter_context(logger)
    table, graph = data.table, bundle.graph
    evaluator = Evaluator(config, workdir, data.validation, table, graph, mesh, logger)
    watchdog = stack.enter_context(Watchdog(_local_logger(logger)))
    folder = workdir / "profile"
    if processes.is_multiprocess():  # those of one host would write the same file
        folder /= f"process_{jax.process_index()}"
    profiler = stack.enter_context(Profiler(folder, profile, logger.info))
    log = StepLog(config, logger, train_step, watchdog.steps_completed)
    return Run(
        config, workdir, table, mesh, dataset, batches, train_step, checkpoints, evaluator,
        logger, log, profiler, stop, watchdog,
    ), state  # fmt: skip


def _train(run: Run, state: TrainState) -> Result | None:
    """Make the steps after `state`; return the last evaluation, or None if told to stop."""
    config, start, result = run.config.train, int(state.step), None
    if start and start % config.eval_every == 0 and not run.checkpoints.has_score(start):
        result = _save_and_evaluate(run, state)  # the run was stopped in this evaluation
        if result is None:
            _save_and_stop(run, state)
            return None
    for step in range(start + 1, config.steps + 1):
        run.profiler.before(step)
        state = _step(run, state, step, first_step=step == start + 1)
        run.profiler.after(step, state)
        is_evaluation = step % config.eval_every == 0 or step == config.steps
        if is_evaluation or step % config.log_every == 0:
            with run.watchdog.phase("wait for the device", on_device=True):
                jax.block_until_ready(state)
            _stop_if_nonfinite(run, state)
            run.log.write(step, state)
        if is_evaluation:
            result = _save_and_evaluate(run, state)
        elif step % config.save_every == 0:
            _save(run, state)
        with run.watchdog.phase("agreement to continue"):
            stopping = run.stop.agreed() or (is_evaluation and result is None)
        if stopping and (step < config.steps or result is None):
            _save_and_stop(run, state)
            return None
    return result or _save_and_evaluate(run, state)  # or: the run was complete before


def _step(run: Run, state: TrainState, step: int, *, first_step: bool) -> TrainState:
    begin = time.perf_counter()
    try:
        with run.watchdog.phase("input"):
            batch = next(run.batches)
    except Exception:  # a file, or a data worker that was killed: keep the steps made so far
        if not processes.is_multiprocess():  # a checkpoint takes all of them
            run.checkpoints.save(state)
        raise
    run.logger.add_input_wait(time.perf_counter() - begin)
    run.log.skipped += int(batch.pop("skipped").sum())
    with run.watchdog.phase("compile" if first_step else "step", on_device=not first_step):
        placed = shard_batch(batch, run.mesh, run.config.train.accumulate)
        if first_step:
            expectation = expected_compilation(run.config, run.mesh)
            with expectation as expected, run.logger.compiling(expected):
                compile_ahead(run.train_step, state, placed)
        state, metrics = run.train_step(state, placed)
        run.log.add(metrics)
    run.log.report_compilation(step, placed)
    return state


def _local_logger(logger: RunLogger) -> Callable[[str], None]:
    """Return a function that prints messages about this process alone."""
    if processes.is_primary():
        return logger.info
    return lambda message: print(f"process {jax.process_index()}: {message}", file=sys.stderr)


def _log_run_description(run: Run, start: int, notes: tuple[str, ...]) -> None:
    model, count = run.config.model, jax.process_count()
    device = run.mesh.devices.flat[0].device_kind + f" in {count} processes" * (count > 1)
    continuing = f"; continuing at step {start}" * (start > 0)
    run.logger.info(
        f"{model_name(model)} on {run.config.data.dataset}, {run.table.num_classes} classes; "
        f"{run.mesh.size} x {device}, {model.dtype}, matmul precision {model.matmul_precision}; "
        f"in {run.workdir}{continuing}"
    )
    for note in notes:
        run.logger.info(note)


def _save_and_evaluate(run: Run, state: TrainState) -> Result | None:
    _save(run, state)  # first: an evaluation takes minutes
    step = int(state.step)
    again = run.checkpoints.has_score(step)
    with (
        run.watchdog.phase("evaluation"),
        run.logger.evaluating(),
        run.stop.cancels("the evaluation, which is made when the run is resumed"),
    ):
        result = run.evaluator.score(state, again=again, canceled=lambda: run.stop.requested)
    if result and not again:
        with run.watchdog.phase("save"):
            run.checkpoints.add_score(step, result.metrics.mean_iou)
    return result


def _save(run: Run, state: TrainState) -> None:
    _stop_if_nonfinite(run, state)
    with run.watchdog.phase("save"):
        run.checkpoints.save(state)


def _save_and_stop(run: Run, state: TrainState) -> None:
    _save(run, state)
    with run.watchdog.phase("save"):
        saved = run.checkpoints.finish()
    where = f"saved in {run.checkpoints.folder}" if saved else "NOT saved"
    run.logger.info(
        f"stopped at step {int(state.step)}, {where}; run the same command again to resume"
    )


def _stop_if_nonfinite(run: Run, state: TrainState) -> None:
    """Save the state before a non-finite step, and that step for `replay`; raise InputError."""
    step = int(state.bad_step)
    if step < 0:
        return
    kept = []
    run.checkpoints.save(state)
    if run.checkpoints.finish():
        kept.append(f"the state before it is saved in {run.checkpoints.folder / str(step)}")
    folder = run.workdir / f"nonfinite_{step + 1:06d}"
    try:
        batch = run.dataset[step]
        capture.write(folder, state=state, config=run.config, table=run.table, batch=batch)
        kept.append(f"segret replay {folder} shows where it begins")
    except InputError as error:  # a full disk must not hide what happened
        run.logger.info(str(error))
    more = run.config.train.max_bad_steps + 10
    raise InputError(
        f"loss or gradient of step {step + 1} is not finite; "
        f"{'; '.join(kept) or 'nothing was saved'}. "
        f"Skip such steps with --config.train.max_bad_steps={more}, or begin in another --workdir "
        "with a lower optim.learning_rate, a longer warmup or model.dtype=float32"
    )
