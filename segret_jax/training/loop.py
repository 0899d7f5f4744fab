"""The training run: resume or start, step, log, evaluate, save."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

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
from segret_jax.models.families import get_family
from segret_jax.models.kernels import platform_of
from segret_jax.parallel import processes
from segret_jax.parallel.mesh import check_batch, make_mesh
from segret_jax.parallel.sharding import place, shard_batch
from segret_jax.run.compile_time import expected_compilation
from segret_jax.run.logger import Journal
from segret_jax.run.memory import machine_of
from segret_jax.run.profiler import Profiler, Steps
from segret_jax.run.stop import StopRequest
from segret_jax.run.watchdog import Watchdog
from segret_jax.run.workdir import claimed
from segret_jax.training import capture, sizing
from segret_jax.training.forecast import check_memory
from segret_jax.training.initialization import initialize
from segret_jax.training.losses import check_class_weights
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.scoring import Scorer
from segret_jax.training.step import compile_ahead, make_train_step
from segret_jax.training.step_log import StepLog


@dataclass
class Run:
    """What stays the same while a run goes on."""

    config: Config
    workdir: Path
    table: ClassTable
    mesh: Mesh
    dataset: grain.MapDataset
    batches: Iterator[dict[str, np.ndarray]]
    train_step: jax.stages.Wrapped
    checkpoints: Checkpoints
    scorer: Scorer
    journal: Journal
    log: StepLog
    profiler: Profiler
    stop: StopRequest
    watchdog: Watchdog


def train(
    config: Config, workdir: Path, *, profile: Steps | None = None, wandb_project: str = ""
) -> Result | None:
    """Train `config` in `workdir`, continuing what is there; return the last evaluation.

    The steps of `profile` are traced. Returns None if the run was stopped before its end. Raises
    InputError for anything that the user can mend: data, config, another run's folder, a loss that
    is not finite.
    """
    mesh = make_mesh(config.mesh)
    table = class_table(config.data)
    check_class_table(table)
    check_class_weights(config.train, table.num_classes)
    training = open_source(config.data, "training")
    check_samples(training, skip_faulty=config.data.on_error == "skip")
    validation = open_source(config.data, "validation")
    machine = machine_of(mesh)
    config, sizes = sizing.resolve(
        config, workdir, machine,
        training=training, validation=validation, num_classes=table.num_classes,
    )  # fmt: skip
    check_batch(config, mesh)

    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(mesh, workdir))
        platform = platform_of(mesh.devices.flat)
        # It may refuse, so before the folder is claimed.
        initial = initialize(config, table, workdir, platform=platform)
        bundle = initial.bundle
        memory = check_memory(config, machine, bundle.num_params, table.num_classes)
        mark = stack.enter_context(claimed(workdir, config))
        stop.on_quit = partial(mark, "stopped")
        optimizer = make_optimizer(
            config.optim, config.train.steps, get_family(config.model.family)
        )
        train_step = make_train_step(bundle.graph, optimizer, config.train, mesh)
        checkpoints = stack.enter_context(closing(Checkpoints(workdir, config, table, training)))
        averaged = config.train.ema_decay > 0
        state = new_state(*bundle.variables, optimizer, averaged=averaged)
        state = place(state, mesh)
        state = checkpoints.restore_latest(state) or state
        start = int(state.step)
        dataset = _dataset(training, config)
        batches = batches_from(dataset, start, workers=config.data.workers)
        stack.enter_context(closing(batches))
        journal = stack.enter_context(
            Journal(
                workdir, steps=config.train.steps, start=start, config=asdict(config),
                images_per_step=config.train.batch_size, wandb_project=wandb_project,
                active=processes.is_first(),
            )
        )  # fmt: skip
        scorer = Scorer(
            config, workdir, validation=validation, table=table, graph=bundle.graph,
            mesh=mesh, journal=journal,
        )  # fmt: skip
        watchdog = stack.enter_context(Watchdog(_say_anyway(journal)))
        run = Run(
            config=config,
            workdir=workdir,
            table=table,
            mesh=mesh,
            dataset=dataset,
            batches=batches,
            train_step=train_step,
            checkpoints=checkpoints,
            scorer=scorer,
            journal=journal,
            log=StepLog(config, journal, train_step, watchdog.steps_completed),
            profiler=stack.enter_context(Profiler(_profile_folder(workdir), profile, journal.say)),
            stop=stop,
            watchdog=watchdog,
        )
        _introduce(run, start, (*sizes, memory, *initial.notes))
        result = _train(run, state, start)
        with run.watchdog.phase("save"):
            is_saved = checkpoints.finish()
        if result and not is_saved:
            raise InputError("the last checkpoint was not saved: run the same command again")
        mark("finished" if result else "stopped")
        return result


def _train(run: Run, state: TrainState, start: int) -> Result | None:
    """Make the steps after `start`; return the last evaluation, or None if told to stop."""
    config, result = run.config.train, None
    if start and start % config.eval_every == 0 and not run.checkpoints.has_score(start):
        result = _save_and_evaluate(run, state)  # the run was stopped in this evaluation
        if result is None:
            _save_and_stop(run, state)
            return None
    for step in range(start + 1, config.steps + 1):
        run.profiler.before(step)
        state = _step(run, state, step, is_first=step == start + 1)
        run.profiler.after(step, state)
        is_evaluation = step % config.eval_every == 0 or step == config.steps
        if is_evaluation or step % config.log_every == 0:
            with run.watchdog.phase("wait for the device", on_device=True):
                jax.block_until_ready(state)
            _refuse_if_not_finite(run, state)
            run.log.write(step, state)
        if is_evaluation:
            result = _save_and_evaluate(run, state)
        elif step % config.save_every == 0:
            _save(run, state)
        with run.watchdog.phase("agreement to go on"):
            stopping = run.stop.agreed() or (is_evaluation and result is None)
        if stopping and (step < config.steps or result is None):
            _save_and_stop(run, state)
            return None
    return result or _save_and_evaluate(run, state)  # or: the run was complete before


def _step(run: Run, state: TrainState, step: int, *, is_first: bool) -> TrainState:
    with _saving_on_error(run, state), run.watchdog.phase("input"):
        begun = time.perf_counter()
        batch = next(run.batches)
        run.journal.waited(time.perf_counter() - begun)
    run.log.count_skipped(batch.pop("skipped"))
    with run.watchdog.phase("compile" if is_first else "step", on_device=not is_first):
        placed = shard_batch(batch, run.mesh, run.config.train.accumulate)
        if is_first:
            expectation = expected_compilation(run.config, run.mesh)
            with expectation as words, run.journal.compiling(words):
                compile_ahead(run.train_step, state, placed)
        state, metrics = run.train_step(state, placed)
        run.log.add(metrics)
    run.log.report_compilation(step, placed)
    return state


def _dataset(training: Source, config: Config) -> grain.MapDataset:
    return training_dataset(
        training,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _profile_folder(workdir: Path) -> Path:
    """Return one of this process's own: processes of one host would write the same file."""
    folder = workdir / "profile"
    return folder / f"process_{jax.process_index()}" if processes.are_several() else folder


def _say_anyway(journal: Journal) -> Callable[[str], None]:
    """Return how this process tells what concerns it alone."""
    if processes.is_first():
        return journal.say
    return lambda message: print(f"process {jax.process_index()}: {message}", file=sys.stderr)


def _introduce(run: Run, start: int, notes: tuple[str, ...]) -> None:
    model, device, count = run.config.model, run.mesh.devices.flat[0], jax.process_count()
    run.journal.say(
        f"{model_name(model)} on {run.config.data.dataset}, {run.table.num_classes} classes; "
        f"{run.mesh.size} x {device.device_kind}"
        + (f" in {count} processes" if count > 1 else "")
        + f", {model.dtype}, matmul precision {model.matmul_precision}; in {run.workdir}"
        + (f"; continuing at step {start}" if start else "")
    )
    for note in notes:
        run.journal.say(note)


def _save_and_evaluate(run: Run, state: TrainState) -> Result | None:
    _save(run, state)  # first: an evaluation takes minutes
    step = int(state.step)
    again = run.checkpoints.has_score(step)
    with (
        run.watchdog.phase("evaluation"),
        run.journal.evaluating(),
        run.stop.cancels("the evaluation, which is made when the run goes on"),
    ):
        result = run.scorer.score(state, again=again, cancelled=lambda: run.stop.requested)
    if result and not again:
        with run.watchdog.phase("save"):
            run.checkpoints.add_score(step, result.metrics.mean_iou)
    return result


def _save(run: Run, state: TrainState) -> None:
    _refuse_if_not_finite(run, state)
    with run.watchdog.phase("save"):
        run.checkpoints.save(state)


@contextmanager
def _saving_on_error(run: Run, state: TrainState) -> Iterator[None]:
    """Keep the steps made so far where a file, or a data worker that was killed, ends the run."""
    try:
        yield
    except Exception:
        if not processes.are_several():  # a checkpoint takes all of them
            run.checkpoints.save(state)
        raise


def _save_and_stop(run: Run, state: TrainState) -> None:
    _save(run, state)
    with run.watchdog.phase("save"):
        saved = run.checkpoints.finish()
    where = f"saved in {run.checkpoints.folder}" if saved else "NOT saved"
    run.journal.say(
        f"stopped at step {int(state.step)}, {where}; run the same command again to go on"
    )


def _refuse_if_not_finite(run: Run, state: TrainState) -> None:
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
        capture.write(
            folder, state=state, config=run.config, table=run.table, batch=run.dataset[step],
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        kept.append(f"segret replay {folder} shows where it begins")
    except InputError as error:  # a full disk must not hide what happened
        run.journal.say(str(error))
    more = run.config.train.max_bad_steps + 10
    raise InputError(
        f"loss or gradient of step {step + 1} is not finite; "
        f"{'; '.join(kept) or 'nothing was saved'}. "
        f"Skip such steps with --config.train.max_bad_steps={more}, or begin in another --workdir "
        "with a lower optim.learning_rate, a longer warmup or model.dtype=float32"
    )
