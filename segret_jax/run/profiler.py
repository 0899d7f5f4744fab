"""Traces of a few training steps: where the time goes, on the host and on the device."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from segret_jax.errors import InputError


@dataclass(frozen=True, slots=True)
class Steps:
    """Training steps from `start` to `stop`, both included, counted from 1."""

    start: int
    stop: int


def parse(text: str, last: int) -> Steps:
    """Read "START:STOP", of `last` steps in all (0: not known yet); InputError for what is not."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    steps = Steps(int(match[1]), int(match[2])) if match else None
    if steps is None or not 1 <= steps.start <= steps.stop:
        raise InputError(
            f"steps to profile {text!r}: should be START:STOP, two step numbers with "
            "1 <= START <= STOP, such as 10:14"
        )
    if 0 < last < steps.start:
        raise InputError(f"steps to profile {text!r}: the run has only {last} (train.steps)")
    return steps


class Profiler:
    """Traces `steps` into `folder`; without steps, nothing.

    Step 1 is mostly compilation, and each step's Python is traced too: a handful of later steps
    tell more than many. A run that resumes between start and stop is traced from there.
    """

    def __init__(self, folder: Path, steps: Steps | None, say: Callable[[str], None]):
        """`say` is told where the trace is, or why there is none."""
        self._folder, self._steps, self._say = folder, steps, say
        self._running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()  # of a run that ended early

    def before(self, step: int) -> None:
        """Start the trace if `step` is the first of those to trace."""
        if self._steps is None or self._running:
            return
        if self._steps.start <= step <= self._steps.stop:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, wait_for: Any) -> None:
        """End the trace if `step` is the last.

        `wait_for`: any pytree of that step's results; the device may still be at work on them.
        """
        if self._steps is not None and self._running and step >= self._steps.stop:
            jax.block_until_ready(wait_for)
            self._end()

    def _end(self) -> None:
        if not self._running:
            return
        self._running = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:  # a full disk is no reason to end the run
            self._say(f"cannot write the profile to {self._folder}: {error}; training goes on")
            return
        self._say(
            f"profile in {self._folder}; to see it: pip install xprof, xprof --logdir "
            f"{self._folder} (or TensorBoard with tensorboard-plugin-profile)"
        )
