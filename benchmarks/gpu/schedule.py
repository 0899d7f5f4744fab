"""Processes that compile at the same time and are timed one at a time, within a bounded time.

A process that has compiled all its programs prints "ready" and waits for "go". While it is timed
every other process is stopped (SIGSTOP), so that nothing compiles; afterward they go on. At the
deadline all are killed: what they found is in the results file already.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL = 0.05  # seconds
SETTLE = 0.2  # seconds, until a stopped process's work on the device is done
ATTEMPTS = 2  # at a process that crashes
LONGEST = 120.0  # seconds that a process may be timed, while all others wait


@dataclass(frozen=True)
class Task:
    """A process to run.

    `command(seconds, attempt)` returns what to start with so many seconds left, or None if
    nothing of it would fit.
    """

    name: str
    command: Callable[[float, int], list[str] | None]


@dataclass
class _Process:
    task: Task
    attempt: int
    popen: subprocess.Popen
    ready: bool = False
    timed_since: float = 0.0  # of `time.monotonic`; 0: not yet
    stopped: bool = False

    def is_waiting(self) -> bool:
        """Return whether it has compiled and waits to be timed."""
        if not self.ready and self.popen.stdout:
            self.ready = b"ready" in (self.popen.stdout.read() or b"")
        return self.ready and not self.timed_since

    def go(self) -> None:
        assert self.popen.stdin
        self.timed_since = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has just died, which is seen later
            self.popen.stdin.write(b"go\n")

    def signal(self, number: int) -> None:
        for pid in (self.popen.pid, *_descendants(self.popen.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Kill it with all that it started, whether stopped or not."""
        if self.popen.poll() is None:
            self.signal(signal.SIGKILL)
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


class Schedule:
    """Runs tasks in their order, up to `parallel` processes at a time, until the deadline."""

    def __init__(
        self, tasks: Sequence[Task], *, deadline: float, parallel: int, log: Path,
        env: dict[str, str], say: Callable[[str], None],
    ):  # fmt: skip
        """`deadline` is in the time of `time.monotonic`; stderr of all tasks goes to `log`."""
        self._waiting = [(task, 1) for task in tasks]
        self._deadline, self._parallel, self._say = deadline, parallel, say
        self._log, self._env = log, env
        self._running: list[_Process] = []
        self.crashes: dict[str, str] = {}  # by the name of the task

    def run(self) -> None:
        """Return when all is done or the time is up; no process is left."""
        try:
            while self._left() > 0 and (self._running or self._waiting):
                timed = next((p for p in self._running if p.timed_since), None)
                if timed is None:
                    self._start_more()
                    self._time_the_first_that_waits()
                elif time.monotonic() - timed.timed_since > LONGEST:  # it hangs
                    timed.end()
                time.sleep(min(POLL, max(self._left(), 0)))
                self._reap()
        finally:
            for process in self._running:
                self._say(f"stopped, the time is up: {process.task.name}")
                process.end()
            self._running.clear()

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _start_more(self) -> None:
        while self._waiting and len(self._running) < self._parallel:
            task, attempt = self._waiting.pop(0)
            command = task.command(self._left(), attempt)
            if command is None:
                continue
            with self._log.open("ab") as log:
                popen = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    env=self._env, bufsize=0, start_new_session=True,
                )  # fmt: skip
            assert popen.stdout
            os.set_blocking(popen.stdout.fileno(), False)
            self._running.append(_Process(task, attempt, popen))
            self._say(f"started: {task.name}")

    def _time_the_first_that_waits(self) -> None:
        process = next((p for p in self._running if p.is_waiting()), None)
        if process is None:
            return
        self._say(f"timing: {process.task.name}")
        for other in self._running:
            if other is not process:
                other.signal(signal.SIGSTOP)
                other.stopped = True
        time.sleep(SETTLE)
        process.go()

    def _reap(self) -> None:
        for process in [p for p in self._running if p.popen.poll() is not None]:
            self._running.remove(process)
            status = process.popen.returncode
            process.end()
            self._say(f"ended: {process.task.name}" + (f", status {status}" if status else ""))
            if status:
                self._try_again(process, status)
        if not any(p.timed_since for p in self._running):
            for other in [p for p in self._running if p.stopped]:
                other.signal(signal.SIGCONT)
                other.stopped = False

    def _try_again(self, process: _Process, status: int) -> None:
        if process.attempt < ATTEMPTS:
            self._waiting.insert(0, (process.task, process.attempt + 1))
        else:
            self.crashes[process.task.name] = f"its process ended with status {status}, twice"


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and theirs, whatever their sessions."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parent = (
                file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            )
            children.setdefault(int(parent), []).append(int(file.parent.name))
    found = [pid]
    for process in found:
        found += children.get(process, [])
    return found[1:]
