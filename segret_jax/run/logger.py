"""Log a run: a progress bar, TensorBoard events, JSON lines, and Weights & Biases if asked for."""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from segret_jax.files import atomic_write, disk_errors_as_input_errors, nan_to_none
from segret_jax.run.memory import device_memory
from segret_jax.run.slow_compile import filter_slow_compile_alarm
from segret_jax.run.wandb_log import WandbLogger

# At most 80 columns with six-digit steps, 1000 hours left and the longest values.
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
STEPS_TO_ESTIMATE = 10
SPEED = ("steps_per_second", "images_per_second", "input_wait_share")


class RunLogger(AbstractContextManager):
    """Write the same numbers to the bar, to `metrics.jsonl`, to TensorBoard and to W&B.

    Args:
        workdir: The run's folder.
        steps: The number of steps of the whole run.
        start: The number of steps that are already made; records after it are dropped.
        images_per_step: The global batch size.
        wandb_project: A project of Weights & Biases, or "" for none.
        config: What W&B shows as the run's config.
        active: False in all processes but the primary one: nothing is written or printed.
    """

    def __init__(
        self, workdir: Path, *, steps: int, start: int, images_per_step: int = 1,
        wandb_project: str = "", config: dict[str, Any] | None = None, active: bool = True,
    ):  # fmt: skip
        self._active, self._images_per_step = active, images_per_step
        self._steps_to_time, self._training_since = STEPS_TO_ESTIMATE, 0.0
        self._wandb = None
        if active and wandb_project:  # first, because it may raise
            self._wandb = WandbLogger(wandb_project, workdir, config=config or {}, log=self.info)
        file = workdir / "metrics.jsonl" if active else Path(os.devnull)
        with disk_errors_as_input_errors(file):
            if active:
                _drop_after(file, start)
            self._lines = file.open("a", buffering=1, encoding="utf-8")
        # Purging hides the events of steps that a killed run made and this one makes again.
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=active
        )
        # A bar on a terminal; in a log file a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm(
            desc="starting", total=steps, initial=start, bar_format=BAR, dynamic_ncols=True,
            mininterval=interval, maxinterval=interval, smoothing=0.1, disable=not active,
        )  # fmt: skip
        self._restart_clock(start)
        self._begun = time.perf_counter()
        self._is_compiling = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._bar.close()
        for file in (self._events, self._lines):
            with suppress(OSError):  # a full disk must not hide why the run ended
                file.close()
        if self._wandb is not None:
            self._wandb.finish(failed=error is not None)

    def advance(self) -> None:
        """Count one completed step; the first one, mostly compilation, counts for no speed.

        After ten more, a line says how long the rest takes.
        """
        bar = self._bar
        bar.set_description_str("train", refresh=False)
        if self._is_compiling:
            self._is_compiling = False
            self._restart_clock(self._since[1] + 1)
            self._training_since = time.perf_counter()
            if not bar.disable:  # estimate the time left from the next steps alone
                bar.n = bar.initial = bar.last_print_n = bar.n + 1
                bar.start_t = bar.last_print_t = bar._time()
                bar.refresh()
            return
        bar.update()
        self._steps_to_time -= 1
        if self._steps_to_time == 0:
            self._print_time_left()

    def _print_time_left(self) -> None:
        seconds = (time.perf_counter() - self._training_since) / STEPS_TO_ESTIMATE
        if not self._bar.disable and (left := self._bar.total - self._bar.n) and seconds > 0:
            self.info(
                f"{left} steps left: about {tqdm.format_interval(left * seconds)} on this machine "
                f"({self._images_per_step / seconds:.3g} images/s), and the evaluations"
            )

    @contextmanager
    def compiling(self, expected: str) -> Iterator[None]:
        """Show the time so far of a compilation and what is `expected`; in a log file once."""

        def show(elapsed: str) -> None:
            self._bar.set_description_str(f"compiling {elapsed} ({expected})")

        interval = 1.0 if sys.stderr.isatty() else threading.TIMEOUT_MAX
        with filter_slow_compile_alarm(), _show_elapsed(show, interval=interval):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show "evaluating", and leave its time out of the estimate of the time left."""
        begin = time.perf_counter()
        self._bar.set_description_str("evaluating")
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._training_since += seconds
            if not self._is_compiling:
                self._bar.set_description_str("train", refresh=False)
            if not self._bar.disable:
                self._bar.start_t += seconds
                self._bar.last_print_t += seconds

    def add_input_wait(self, seconds: float) -> None:
        """Count time that training waited for input."""
        self._input_wait += seconds

    def record_training(self, step: int, values: dict[str, float]) -> None:
        """Record training values after `step` steps, with speed and memory.

        Adds, since the last record: `steps_per_second`, `images_per_second`, `input_wait_share`
        (0..1, of the wall time); since the start of the process: `peak_memory_gb` (10^9 bytes, see
        `device_memory`) and `seconds`.
        """
        values = values | self._speed(step) | {"peak_memory_gb": device_memory() / 1e9}
        self._restart_clock(step)
        skipped, speed = values["skipped_samples"], values["images_per_second"]
        shown = [f"loss {values['loss']:.3f}"[:10]]
        shown.append(f"{skipped:.0f} skipped" if skipped else f"acc {values['accuracy']:.1f}%")
        if math.isfinite(speed):
            shown.append(f"{speed:.0f} images/s" if speed >= 1000 else f"{speed:.3g} images/s")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._record("train", step, values)

    def record_evaluation(self, step: int, values: dict[str, float], message: str) -> None:
        """Record scores and print `message` above the bar."""
        self.info(f"step {step}: {message}")
        self._record("validation", step, values)
        self._restart_clock(step)  # evaluation is not training time

    def picture(self, step: int, file: Path) -> None:
        """Log a picture file to W&B, if that is on."""
        if self._wandb is not None:
            self._wandb.picture(step, file)

    def info(self, message: str) -> None:
        """Print a line above the bar."""
        if self._active:
            tqdm.write(message)

    def _restart_clock(self, step: int) -> None:
        self._since, self._input_wait = (time.perf_counter(), step), 0.0

    def _speed(self, step: int) -> dict[str, float]:
        then, before = self._since
        seconds = time.perf_counter() - then
        if step == before:  # the first one: mostly compilation
            return dict.fromkeys(SPEED, math.nan)
        rate = (step - before) / seconds
        wait_share = min(1.0, self._input_wait / seconds)
        return dict(zip(SPEED, (rate, rate * self._images_per_step, wait_share), strict=True))

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        seconds = round(time.perf_counter() - self._begun, 3)
        plain = {"seconds": seconds} | {k: nan_to_none(v) for k, v in values.items()}
        finite = {f"{kind}/{k}": v for k, v in values.items() if math.isfinite(v)}
        try:
            self._lines.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
            for name, value in finite.items():
                self._events.add_scalar(name, value, step)
        except OSError as error:
            self.info(f"cannot write to {self._lines.name}: {error.strerror}; training continues")
        if self._wandb is not None:
            self._wandb.log(step, finite)


def _drop_after(file: Path, step: int) -> None:
    """Drop records of steps that a killed run made after its last checkpoint."""
    if file.exists():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        atomic_write(file, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):  # cut off in the middle, or not ours
        return math.inf


@contextmanager
def _show_elapsed(show: Callable[[str], None], *, interval: float = 1.0) -> Iterator[None]:
    """Call `show` with the time so far, such as "1:05", at once and every `interval` seconds."""
    begun, over = time.monotonic(), threading.Event()

    def run() -> None:
        while not over.wait(interval):
            with suppress(Exception):  # a terminal that is gone must not end the clock's thread
                show(_minutes(time.monotonic() - begun))

    thread = threading.Thread(target=run, name="moving clock", daemon=True)
    show(_minutes(0.0))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)  # `show` may hang: the run continues all the same


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
