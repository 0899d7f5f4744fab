"""Report where a run waits when that takes far longer than usual.

A full disk, a lost network drive or a device that hangs raise no error: the run just stands still.
"""

import sys
import textwrap
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from statistics import median
from types import MappingProxyType

# Seconds that a phase may take for the first time; any other phase 600.
FIRST: Mapping[str, float] = MappingProxyType({"compile": 1800.0, "evaluation": 3600.0})
FACTOR = 10  # times the median of a phase's past durations that it may take
NUM_FRAMES = 12


@dataclass(slots=True)
class _Phase:
    name: str
    start: float
    on_device: bool
    thread: int
    reported: float = 0.0  # seconds that the last report named; 0: none yet


class Watchdog:
    """Report the phase that one thread, mostly the main one, has been in for too long.

    A thread of its own checks every `interval` seconds. Too long is more than `FACTOR` times the
    median of that phase's own past, at least `least` seconds; without a past, `first`. It cannot
    report native code that keeps the interpreter's lock; XLA releases it.

    A phase that dispatches to the device, or waits for it, mostly returns at once and sometimes
    takes a whole step. So `on_device` phases are compared with the time between completed steps.

    Args:
        log: Receives the reports.
        least: Seconds that any phase may take.
        first: Seconds that a phase may take for the first time, by its name; others 600.
        clock: Returns the time in seconds.
        interval: Seconds between two checks.
    """

    def __init__(
        self, log: Callable[[str], None], *, least: float = 30.0,
        first: Mapping[str, float] = FIRST, clock: Callable[[], float] = time.monotonic,
        interval: float = 1.0,
    ):  # fmt: skip
        self._log, self._clock, self._interval = log, clock, interval
        self._least, self._first = least, first
        self._phases: list[_Phase] = []
        recent: Callable[[], deque[float]] = partial(deque, maxlen=101)
        self._history: defaultdict[str, deque[float]] = defaultdict(recent)
        self._step_times = recent()
        self._last_step: float | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)  # `log` may hang: the run must end all the same

    @contextmanager
    def phase(self, name: str, *, on_device: bool = False) -> Iterator[None]:
        """Watch the block; all phases are entered by one thread.

        Of nested phases the innermost counts; the time of the outer one runs meanwhile.

        Args:
            name: What the block does, as the report names it.
            on_device: Whether to compare it with the step times of `steps_completed`.
        """
        phase = _Phase(name, self._clock(), on_device, threading.get_ident())
        with self._lock:
            self._phases.append(phase)
        try:
            yield
        finally:
            with self._lock:  # waits for a report under way, which comes before the end's message
                self._phases.pop()
                seconds = self._clock() - phase.start
                if not on_device:
                    self._history[name].append(seconds)
            if phase.reported:
                with suppress(Exception):
                    self._log(f"{name} ended after all, after {_format(seconds)} s")

    def steps_completed(self, count: int) -> None:
        """Record that the device completed `count` more steps.

        The first call only starts the measurement: most of the time before it is compilation.
        """
        with self._lock:
            now = self._clock()
            if self._last_step is not None:
                self._step_times.append((now - self._last_step) / count)
            self._last_step = now

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            with suppress(Exception):  # `log`: a terminal that is gone, a full disk
                self._check()

    def _check(self) -> None:
        with self._lock:
            if not self._phases:
                return
            phase = self._phases[-1]
            seconds = self._clock() - phase.start
            history = self._step_times if phase.on_device else self._history.get(phase.name)
            allowed, usual = self._first.get(phase.name, 600.0), "the first time"
            if history:
                allowed = max(self._least, FACTOR * median(history))
                usual = f"usually {_format(median(history))} s"
            if seconds > max(allowed, 2 * phase.reported):
                phase.reported = seconds
                frame = sys._current_frames()[phase.thread]
                stack = "".join(traceback.format_stack(frame)[-NUM_FRAMES:]).rstrip()
                waiting = f"{phase.name} has been waiting for {_format(seconds)} s ({usual}), here:"
                self._log(f"{waiting}\n{textwrap.indent(stack, '  ')}")


def _format(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
