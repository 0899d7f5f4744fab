"""Traces of a few training steps: where the time goes, on the host and on the device."""

from collections.abc import Callable, Container
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax


class Profiler(AbstractContextManager):
    """Trace training steps.

    Step 1 is mostly compilation, and each step's Python is traced too: a handful of later steps
    tell more than many. A run that resumes in the middle of `steps` is traced from there.

    Args:
        folder: Where the trace is written.
        steps: The steps to trace, counted from 1; empty for none.
        log: Receives a message where the trace is, or why there is none.
    """

    def __init__(self, folder: Path, steps: Container[int], log: Callable[[str], None]):
        self._folder, self._steps, self._log = folder, steps, log
        self._running = False

    def __exit__(self, *error: object) -> None:
        self._end()  # of a run that ended early

    def before(self, step: int) -> None:
        """Start the trace if `step` is the first of those to trace."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """End the trace if `step` is the last, once the device has computed its `results`."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(results)
            self._end()

    def _end(self) -> None:
        if not self._running:
            return
        self._running = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:  # a full disk is no reason to end the run
            self._log(f"cannot write the profile to {self._folder}: {error}; training continues")
            return
        self._log(
            f"profile in {self._folder}; to see it: pip install xprof, xprof --logdir "
            f"{self._folder} (or TensorBoard with tensorboard-plugin-profile)"
        )
