"""What a run tells: a progress bar, TensorBoard events and one JSON line per record."""

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm


class Journal:
    """Writes the same numbers to the bar, to `metrics.jsonl` and to TensorBoard."""

    def __init__(self, workdir: Path, *, steps: int, start: int):
        file = workdir / "metrics.jsonl"
        _drop_after(file, start)
        self._lines = file.open("a", buffering=1)
        self._events = SummaryWriter(str(workdir / "tensorboard"))
        # A bar on a terminal; in a log file a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True,
            mininterval=interval, maxinterval=interval, smoothing=0.1,
        )  # fmt: skip
        self._bar.set_description("compiling")
        self._since = (time.perf_counter(), start)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        for file in (self._events, self._lines):
            with suppress(OSError):  # a full disk must not hide why the run ended
                file.close()

    def tick(self) -> None:
        """Count one step."""
        self._bar.set_description("train", refresh=False)
        self._bar.update()

    def train(self, step: int, values: dict[str, float]) -> None:
        """Record training values after `step` steps, with the speed since the last record."""
        now, (then, before) = time.perf_counter(), self._since
        self._since = (now, step)
        values = values | {"steps_per_second": (step - before) / (now - then)}
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, pixel accuracy {values['accuracy']:.1f} %, "
            f"lr {values['learning_rate']:.1e}"
            + (f", {values['skipped_samples']:.0f} skipped" if values["skipped_samples"] else ""),
            refresh=False,
        )
        self._record("train", step, values)

    def evaluation(self, step: int, values: dict[str, float], message: str) -> None:
        """Record scores and print `message` above the bar."""
        self.say(f"step {step}: {message}")
        self._record("validation", step, values)
        self._since = (time.perf_counter(), step)  # evaluation is not training time

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._bar.write(message)

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        plain = {k: None if math.isnan(v) else v for k, v in values.items()}  # JSON has no NaN
        try:
            self._lines.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            self.say(f"cannot write to {self._lines.name}: {error.strerror}; training goes on")


def _drop_after(file: Path, step: int) -> None:
    """Forget records of steps that a killed run made after its last checkpoint."""
    if file.exists():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # cut off in the middle
        return math.inf
