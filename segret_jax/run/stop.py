"""Ending a run between two steps: on Ctrl-C or SIGTERM, in all processes at the same step."""

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from segret_jax.parallel import processes
from segret_jax.parallel.mesh import AXES
from segret_jax.run import interrupts
from segret_jax.run.workdir import newest_step

DELAY = 2  # steps after which the processes know each other's requests, without waiting for them
AFTER_STEP = "stopping after this step, saving"


class StopRequest:
    """Ctrl-C and SIGTERM request a clean stop after the current step; a second Ctrl-C quits.

    Each is answered with a line at once, even while XLA compiles. `on_quit` is called last.
    """

    def __init__(self, mesh: Mesh, workdir: Path) -> None:
        self.requested = False
        self.on_quit: Callable[[], None] = lambda: None
        self._workdir, self._num_devices = workdir, mesh.size
        self._presses = interrupts.InterruptCounter()
        self._effect, self._printed = AFTER_STEP, ""
        self._flags: deque[jax.Array] = deque()
        self._sharding = NamedSharding(mesh, PartitionSpec(AXES))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._stack = ExitStack()

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
        self._stack.enter_context(interrupts.signal_listener(self._answer))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def cancels(self, what: str) -> Iterator[None]:
        """Say that a stop cancels `what`, if it comes inside the block."""
        self._effect = f"canceling {what}"
        try:
            yield
        finally:
            self._effect = AFTER_STEP

    def _on_signal(self, number: int, frame: object) -> None:
        self.requested = True

    def _answer(self, number: int) -> None:
        """Answer a signal, in a thread that does not wait for the main one."""
        if number == signal.SIGTERM:
            self._print(f"SIGTERM: {self._effect}")
        elif number == signal.SIGINT:
            if self._presses.add() > 1:
                interrupts.quit_at_once(self._print_last)
            self._print(f"{self._effect}; press Ctrl-C again to quit without saving")

    def _print(self, message: str) -> None:
        """Print a line above the progress bar, once: schedulers repeat SIGTERM."""
        if processes.is_primary() and message != self._printed:
            tqdm.write(message, file=sys.stderr)
            self._printed = message

    def _print_last(self) -> None:
        step = newest_step(self._workdir)
        how = f"continues from the checkpoint of step {step}" if step else "starts from step 0"
        if processes.is_primary():
            interrupts.print_below_bar(f"stopped at once; the same command {how}")
        self.on_quit()

    def agreed(self) -> bool:
        """Return whether all processes are to stop now; to be called once after each step.

        A signal does not reach all processes at the same step. So each contributes its request to
        a maximum over all devices, and reads the one that was started two steps ago: by then it is
        computed. All processes get the same answer.
        """
        if not processes.is_multiprocess():
            return self.requested
        own = np.full(self._num_devices, self.requested, np.int32)
        flags = jax.make_array_from_callback(own.shape, self._sharding, lambda index: own[index])
        self._flags.append(self._any(flags))
        return len(self._flags) > DELAY and bool(self._flags.popleft())
