"""Traces of a few training steps: where the time goes, on the host and on the device."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from segret_jax.errors import InputError


@dataclass(frozen=True, slots=True)
class Steps:
    """Training steps from `start` to `stop`, both included, counted from 1."""

    start: int
    stop: int


def parse(text: str) -> Steps:
    """Read "START:STOP". Raises InputError for anything else."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    steps = Steps(int(match[1]), int(match[2])) if match else None
    if steps is None or not 1 <= steps.start <= steps.stop:
        raise InputError(
            f"steps to profile {text!r}: should be START:STOP, two step numbers with "
            "1 <= START <= STOP, such as 10:14"
        )
    return steps


class Profiler:
    """Traces `steps` into `folder`; without steps, nothing.

    Step 1 is mostly compilation, and each step's Python is traced too: a handful of later steps
    tell more than many. A run that resumes between start and stop is traced from there.
    """

    def __init__(self, folder: Path, steps: Steps | None):
        self._folder, self._steps = folder, steps
        self._running = False

    def before(self, step: int) -> None:
        """Start the trace if `step` is the first of those to trace."""
        if self._steps is None or self._running:
            return
        if self._steps.start <= step <= self._steps.stop:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, wait_for: Any) -> str:
        """End the trace if `step` is the last; return where it is, else "".

        `wait_for`: any pytree of that step's results; the device may still be at work on them.
        """
        if self._steps is None or not self._running or step < self._steps.stop:
            return ""
        jax.block_until_ready(wait_for)
        return self.close()

    def close(self) -> str:
        """End a trace that is still running; return where it is, else "". May be called again."""
        if not self._running:
            return ""
        self._running = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:  # a full disk is no reason to end the run
            return f"cannot write the profile to {self._folder}: {error}; training goes on"
        return (
            f"profile in {self._folder}; to see it: pip install xprof, xprof --logdir "
            f"{self._folder} (or TensorBoard with tensorboard-plugin-profile)"
        )
