"""What a run tells: a progress bar, TensorBoard events, one JSON line per record, W&B if wanted."""

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from segret_jax.files import write_whole, writing
from segret_jax.training.memory import device_memory
from segret_jax.training.wandb_log import WandbLog

SPEED = ("steps_per_second", "images_per_second", "input_wait_share")


class Journal:
    """Writes the same numbers to the bar, to `metrics.jsonl`, to TensorBoard and to W&B.

    One process of a run does: with `active=False` nothing is written or printed.
    """

    def __init__(
        self, workdir: Path, *, steps: int, start: int, images_per_step: int = 1,
        wandb_project: str = "", config: dict[str, Any] | None = None, active: bool = True,
    ):  # fmt: skip
        self._active, self._images_per_step = active, images_per_step
        self._wandb = None
        if active and wandb_project:  # first: it may refuse
            self._wandb = WandbLog(wandb_project, workdir, config=config or {}, say=self.say)
        file = workdir / "metrics.jsonl" if active else Path(os.devnull)
        with writing(file):
            if active:
                _drop_after(file, start)
            self._lines = file.open("a", buffering=1)
        # Purging hides what a killed run told of steps that are now made again.
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=active
        )
        # A bar on a terminal; in a log file a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True,
            mininterval=interval, maxinterval=interval, smoothing=0.1, disable=not active,
        )  # fmt: skip
        self._bar.set_description("compiling")
        self._restart_clock(start)
        self._is_first = True

    def __enter__(self) -> "Journal":
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

    def tick(self) -> None:
        """Count one step; the first one's time, most of it compilation, counts for no speed."""
        if self._is_first:
            self._restart_clock(self._since[1] + 1)
            self._is_first = False
        self._bar.set_description("train", refresh=False)
        self._bar.update()

    def waited(self, seconds: float) -> None:
        """Count time that training stood still for lack of input."""
        self._waited += seconds

    def train(self, step: int, values: dict[str, float]) -> None:
        """Record training values after `step` steps, with speed and memory.

        Adds, since the last record: `steps_per_second`, `images_per_second`, `input_wait_share`
        (0..1, of the wall time); since the start: `peak_memory_gb` (10^9 bytes, see
        `device_memory`).
        """
        values = values | self._speed(step) | {"peak_memory_gb": device_memory() / 1e9}
        self._restart_clock(step)
        speed = values["images_per_second"]
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, pixel accuracy {values['accuracy']:.1f} %, "
            f"lr {values['learning_rate']:.1e}"
            + (f", {speed:.3g} images/s" if math.isfinite(speed) else "")
            + (f", {values['skipped_samples']:.0f} skipped" if values["skipped_samples"] else ""),
            refresh=False,
        )
        self._record("train", step, values)

    def evaluation(self, step: int, values: dict[str, float], message: str) -> None:
        """Record scores and print `message` above the bar."""
        self.say(f"step {step}: {message}")
        self._record("validation", step, values)
        self._restart_clock(step)  # evaluation is not training time

    def picture(self, step: int, file: Path) -> None:
        """Show a picture file at W&B, if the run is there."""
        if self._wandb is not None:
            self._wandb.picture(step, file)

    def say(self, message: str) -> None:
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
            self.say(f"cannot write to {self._lines.name}: {error.strerror}; training goes on")
        if self._wandb is not None:
            shown = {f"{kind}/{name}": value for name, value in values.items()}
            self._wandb.log(step, {k: v for k, v in shown.items() if math.isfinite(v)})


def _drop_after(file: Path, step: int) -> None:
    """Forget records of steps that a killed run made after its last checkpoint."""
    if file.exists():
        lines = file.read_text(errors="replace").splitlines()
        write_whole(file, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):  # cut off in the middle, or not ours
        return math.inf
