"""Says what a run waits for, and where in the code, when that takes far longer than usual.

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
from statistics import median
from types import MappingProxyType, TracebackType

# Seconds that a phase may take for the first time; any other phase 600.
FIRST: Mapping[str, float] = MappingProxyType({"compile": 1800.0, "evaluation": 3600.0})
NUM_FRAMES = 12


@dataclass(slots=True, kw_only=True)
class _Phase:
    name: str
    start: float
    thread: int
    on_device: bool
    reported: float = 0.0  # seconds that the last report named; 0: none yet


class Watchdog:
    """Reports the phase that one thread, mostly the main one, has been in for too long.

    A thread of its own looks every `interval` seconds. Too long is more than `factor` times the
    median of that phase's own past, at least `least` seconds; without a past, `first`. Native code
    that keeps the interpreter's lock is the one thing that it cannot report: XLA gives it up.

    A phase that dispatches to the device, or waits for it, mostly returns at once and sometimes
    takes a whole step. So `on_device` phases are compared with the time between completed steps.
    """

    def __init__(
        self, say: Callable[[str], None], *, factor: float = 10.0, least: float = 30.0,
        first: Mapping[str, float] = FIRST, clock: Callable[[], float] = time.monotonic,
        interval: float = 1.0,
    ):  # fmt: skip
        self._say, self._clock, self._interval = say, clock, interval
        self._factor, self._least, self._first = factor, least, first
        self._phases: list[_Phase] = []
        self._history: defaultdict[str, deque[float]] = defaultdict(_recent)
        self._step_times = _recent()
        self._last_step: float | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=5)  # `say` may hang: the run must end all the same

    @contextmanager
    def phase(self, name: str, *, on_device: bool = False) -> Iterator[None]:
        """Watch what happens inside. Of nested phases the innermost counts.

        The outer one's time goes on meanwhile. All phases are entered by one thread. `on_device`
        phases are judged by the times that `steps_completed` measures.
        """
        phase = _Phase(
            name=name, start=self._clock(), thread=threading.get_ident(), on_device=on_device
        )
        with self._lock:
            self._phases.append(phase)
        try:
            yield
        finally:
            self._end(phase)

    def steps_completed(self, count: int) -> None:
        """Record that the device completed `count` more steps.

        The first call only starts the measurement: most of the time before it is compilation.
        """
        with self._lock:
            now = self._clock()
            if self._last_step is not None:
                self._step_times.append((now - self._last_step) / count)
            self._last_step = now

    def _end(self, phase: _Phase) -> None:
        with self._lock:  # waits for a report under way: its end must not be told before it
            self._phases.pop()
            seconds = self._clock() - phase.start
            if not phase.on_device:
                self._history[phase.name].append(seconds)
        if phase.reported:
            with suppress(Exception):
                self._say(f"{phase.name} ended after all, after {_plain(seconds)} s")

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            with suppress(Exception):  # `say`: a terminal that is gone, a full disk
                self._check()

    def _check(self) -> None:
        with self._lock:
            if not self._phases:
                return
            phase = self._phases[-1]
            seconds = self._clock() - phase.start
            history = self._step_times if phase.on_device else self._history.get(phase.name)
            usual = median(history) if history else None
            if seconds > max(self._allowed(phase.name, usual), 2 * phase.reported):
                phase.reported = seconds
                self._say(_report(phase, seconds, usual))

    def _allowed(self, name: str, usual: float | None) -> float:
        if usual is None:
            return self._first.get(name, 600.0)
        return max(self._least, self._factor * usual)


def _recent() -> deque[float]:
    return deque(maxlen=101)


def _report(phase: _Phase, seconds: float, usual: float | None) -> str:
    before = "the first time" if usual is None else f"usually {_plain(usual)} s"
    stack = traceback.format_stack(sys._current_frames()[phase.thread])[-NUM_FRAMES:]
    where = textwrap.indent("".join(stack).rstrip(), "  ")
    return f"{phase.name} has been waiting for {_plain(seconds)} s ({before}), here:\n{where}"


def _plain(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
