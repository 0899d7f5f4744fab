"""What a run tells: a progress bar, TensorBoard events, one JSON line per record, W&B if wanted."""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.run.elapsed import show_elapsed
from segret_jax.run.memory import device_memory
from segret_jax.run.slow_compile import filter_slow_compile_alarm
from segret_jax.run.wandb_log import WandbLogger

# At most 80 columns with six-digit steps, 1000 hours left and the longest values.
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
STEPS_TO_ESTIMATE = 10
SPEED = ("steps_per_second", "images_per_second", "input_wait_share")


class RunLogger:
    """Writes the same numbers to the bar, to `metrics.jsonl`, to TensorBoard and to W&B.

    One process of a run does: with `active=False` nothing is written or printed.
    """

    def __init__(
        self, workdir: Path, *, steps: int, start: int, images_per_step: int = 1,
        wandb_project: str = "", config: dict[str, Any] | None = None, active: bool = True,
    ):  # fmt: skip
        self._active, self._images_per_step = active, images_per_step
        self._steps, self._start = steps, start
        self._wandb = None
        if active and wandb_project:  # first: it may refuse
            self._wandb = WandbLogger(wandb_project, workdir, config=config or {}, say=self.info)
        file = workdir / "metrics.jsonl" if active else Path(os.devnull)
        with disk_errors_as_input_errors(file):
            if active:
                _drop_after(file, start)
            self._lines = file.open("a", buffering=1, encoding="utf-8")
        # Purging hides what a killed run told of steps that are now made again.
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=active
        )
        # A bar on a terminal; in a log file a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm(
            total=steps, initial=start, bar_format=BAR, dynamic_ncols=True,
            mininterval=interval, maxinterval=interval, smoothing=0.1, disable=not active,
        )  # fmt: skip
        self._bar.set_description_str("starting")
        self._restart_clock(start)
        self._training_since, self._timed_steps = 0.0, 0
        self._is_first = True

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        for file in (self._events, self._lines):
            with suppress(OSError):  # a full disk must not hide why the run ended
                file.close()
        if self._wandb is not None:
            self._wandb.finish(failed=error is not None)

    def advance(self) -> None:
        """Count one completed step; the first one's time, most of it compilation, gives no speed.

        After ten more, a line says how long the rest takes.
        """
        self._bar.set_description_str("train", refresh=False)
        if self._is_first:
            self._is_first = False
            self._restart_clock(self._since[1] + 1)
            self._training_since = time.perf_counter()
            self._restart_bar()
            return
        self._bar.update()
        self._timed_steps += 1
        if self._timed_steps == STEPS_TO_ESTIMATE:
            self._say_time_left()

    def _restart_bar(self) -> None:
        """Count one step and estimate the time left from the next ones alone."""
        bar = self._bar
        if not bar.disable:
            bar.n = bar.initial = bar.last_print_n = bar.n + 1
            bar.start_t = bar.last_print_t = bar._time()
            bar.refresh()

    def _say_time_left(self) -> None:
        seconds = (time.perf_counter() - self._training_since) / self._timed_steps
        left = self._steps - self._start - 1 - self._timed_steps
        if left > 0 and seconds > 0:
            self.info(
                f"{left} steps left: about {tqdm.format_interval(left * seconds)} on this machine "
                f"({self._images_per_step / seconds:.3g} images/s), and the evaluations"
            )

    @contextmanager
    def compiling(self, expected: str) -> Iterator[None]:
        """Title the bar so; on a terminal with a clock that moves, in a log file once.

        `expected` says in words how long it may take.
        """

        def show(elapsed: str) -> None:
            self._bar.set_description_str(f"compiling {elapsed}, {expected}")

        interval = 1.0 if sys.stderr.isatty() else threading.TIMEOUT_MAX
        with filter_slow_compile_alarm(), show_elapsed(show, interval=interval):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Title the bar so, and leave this time out of the time left."""
        begun = time.perf_counter()
        self._bar.set_description_str("evaluating")
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self._training_since += seconds
            if not self._is_first:
                self._bar.set_description_str("train", refresh=False)
            if not self._bar.disable:
                self._bar.start_t += seconds
                self._bar.last_print_t += seconds

    def add_input_wait(self, seconds: float) -> None:
        """Count time that training stood still for lack of input."""
        self._waited += seconds

    def record_training(self, step: int, values: dict[str, float]) -> None:
        """Record training values after `step` steps, with speed and memory.

        Adds, since the last record: `steps_per_second`, `images_per_second`, `input_wait_share`
        (0..1, of the wall time); since the start: `peak_memory_gb` (10^9 bytes, see
        `device_memory`).
        """
        values = values | self._speed(step) | {"peak_memory_gb": device_memory() / 1e9}
        self._restart_clock(step)
        speed = values["images_per_second"]
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}"[:10]
            + (
                f", {values['skipped_samples']:.0f} skipped"
                if values["skipped_samples"]
                else f", acc {values['accuracy']:.1f} %"
            )
            + (f", {_three_digits(speed)} images/s" if math.isfinite(speed) else ""),
            refresh=False,
        )
        self._record("train", step, values)

    def record_evaluation(self, step: int, values: dict[str, float], message: str) -> None:
        """Record scores and print `message` above the bar."""
        self.info(f"step {step}: {message}")
        self._record("validation", step, values)
        self._restart_clock(step)  # evaluation is not training time

    def picture(self, step: int, file: Path) -> None:
        """Show a picture file at W&B, if the run is there."""
        if self._wandb is not None:
            self._wandb.picture(step, file)

    def info(self, message: str) -> None:
        """Print a line above the bar."""
        if self._active:
            tqdm.write(message)

    def _restart_clock(self, step: int) -> None:
        self._since, self._waited = (time.perf_counter(), step), 0.0

    def _speed(self, step: int) -> dict[str, float]:
        then, before = self._since
        seconds = time.perf_counter() - then
        if step == before:  # the first one: mostly compilation
            return dict.fromkeys(SPEED, math.nan)
        steps_per_second = (step - before) / seconds
        return {
            "steps_per_second": steps_per_second,
            "images_per_second": steps_per_second * self._images_per_step,
            "input_wait_share": min(1.0, self._waited / seconds),
        }

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        plain = {k: None if math.isnan(v) else v for k, v in values.items()}  # JSON has no NaN
        try:
            self._lines.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
            for name, value in values.items():
                if math.isfinite(value):
                    self._events.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            self.info(f"cannot write to {self._lines.name}: {error.strerror}; training goes on")
        if self._wandb is not None:
            shown = {f"{kind}/{name}": value for name, value in values.items()}
            self._wandb.log(step, {k: v for k, v in shown.items() if math.isfinite(v)})


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _drop_after(file: Path, step: int) -> None:
    """Forget records of steps that a killed run made after its last checkpoint."""
    if file.exists():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        atomic_write(file, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):  # cut off in the middle, or not ours
        return math.inf
