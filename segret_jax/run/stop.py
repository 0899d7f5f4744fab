"""Ending a run between two steps: on Ctrl-C or SIGTERM, in all processes at the same step."""

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from segret_jax.parallel import processes
from segret_jax.parallel.mesh import AXES
from segret_jax.run.interrupts import (
    InterruptCounter,
    print_below_bar,
    quit_at_once,
    signal_listener,
)
from segret_jax.run.workdir import newest_step

DELAY = 2  # steps after which the processes know each other's wishes, without waiting for them
AFTER_STEP = "stopping after this step, saving"


class StopRequest:
    """Ctrl-C and SIGTERM ask for a clean stop after the current step; a second Ctrl-C quits.

    Each is answered with a line at once, even while XLA compiles. `on_quit` is called last.
    """

    def __init__(self, mesh: Mesh, workdir: Path) -> None:
        self.requested = False
        self.on_quit: Callable[[], None] = lambda: None
        self._workdir = workdir
        self._presses = InterruptCounter()
        self._effect, self._said = AFTER_STEP, ""
        self._stop_flags: deque[jax.Array] = deque()
        self._shards = NamedSharding(mesh, PartitionSpec(AXES))
        self._num_devices = mesh.size
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __enter__(self) -> "StopRequest":
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            stack.enter_context(signal_listener(self._answer))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def cancels(self, what: str) -> Iterator[None]:
        """Say that a stop cancels `what`, where it comes inside."""
        self._effect = f"canceling {what}"
        try:
            yield
        finally:
            self._effect = AFTER_STEP

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _answer(self, number: int) -> None:
        """Answer a signal, in a thread that does not wait for the main one."""
        if number == signal.SIGTERM:
            self._say(f"SIGTERM: {self._effect}")
        elif number == signal.SIGINT:
            if self._presses.add() > 1:
                quit_at_once(self._say_last)
            self._say(f"{self._effect}; press Ctrl-C again to quit without saving")

    def _say(self, message: str) -> None:
        """Print a line above the progress bar, once: schedulers repeat SIGTERM."""
        if processes.is_primary() and message != self._said:
            tqdm.write(message, file=sys.stderr)
            self._said = message

    def _say_last(self) -> None:
        step = newest_step(self._workdir)
        then = (
            f"the newest checkpoint is step {step}: the same command goes on from there"
            if step
            else "there is no checkpoint yet: the same command starts anew"
        )
        if processes.is_primary():
            print_below_bar(f"stopped at once; {then}")
        self.on_quit()

    def agreed(self) -> bool:
        """Tell, once after each step, whether all are to stop now: the same in every process.

        A signal does not come to all processes at the same step. So each gives its wish to a sum
        over all devices, and reads the one that was begun two steps ago: by then it is there.
        """
        if not processes.is_multiprocess():
            return self.requested
        wish = np.full(self._num_devices, self.requested, np.int32)
        shared = jax.make_array_from_callback(wish.shape, self._shards, lambda part: wish[part])
        self._stop_flags.append(self._any(shared))
        return len(self._stop_flags) > DELAY and bool(self._stop_flags.popleft())
