"""A clock that the test sets, and a watchdog that looks at it all the time."""

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from segret_jax.run.watchdog import Watchdog


class Clock:
    """Stands still until the test moves it; counts how often the watchdog has looked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        if threading.current_thread() is not threading.main_thread():
            self.looks += 1
        return self.now

    def advance(self, seconds: float) -> None:
        """Return when the watchdog has seen the new time and has done what it does about it."""
        self.now += seconds
        until = self.looks + 2  # the first look may have begun before
        for _ in range(60_000):
            if self.looks >= until:
                return
            time.sleep(0.001)
        pytest.fail("the watchdog does not look")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reports() -> queue.SimpleQueue:
    return queue.SimpleQueue()


@pytest.fixture
def watchdog(clock, reports) -> Iterator[Watchdog]:
    first = {"compile": 2.0}
    with Watchdog(reports.put, least=0.05, first=first, clock=clock, interval=0.001) as watchdog:
        yield watchdog


def pass_phase(watchdog: Watchdog, clock: Clock, name: str, seconds: float) -> None:
    with watchdog.phase(name):
        clock.advance(seconds)


def wait_for_a_file(clock: Clock, seconds: float) -> None:
    """Where the stack should lead."""
    clock.advance(seconds)


def only(reports: queue.SimpleQueue) -> str:
    report = reports.get_nowait()
    assert reports.empty()
    return report


def test_the_report_names_phase_time_median_and_the_waiting_function(watchdog, clock, reports):
    for seconds in (0.01, 0.02, 0.09):
        pass_phase(watchdog, clock, "input", seconds)
    assert reports.empty()
    with watchdog.phase("input"):
        wait_for_a_file(clock, 0.19)
        assert reports.empty()  # ten times the median is 0.2
        wait_for_a_file(clock, 0.11)
        lines = only(reports).splitlines()
    assert lines[0] == "input has been waiting for 0.3 s (usually 0.02 s), here:"
    assert any(line.endswith("in wait_for_a_file") for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert 2 <= sum("File " in line for line in lines) <= 12


def test_report_repeats_only_after_twice_the_time(watchdog, clock, reports):
    pass_phase(watchdog, clock, "step", 0.001)
    with watchdog.phase("step"):
        clock.advance(0.1)
        assert "0.1 s" in only(reports)
        clock.advance(0.09)
        assert reports.empty()
        clock.advance(0.02)
        assert "0.21 s" in only(reports)
    assert only(reports) == "step ended after all, after 0.21 s"
    pass_phase(watchdog, clock, "step", 0.04)
    assert reports.empty()  # at least `least`, and a phase in time ends in silence


def test_first_occurrence_of_a_phase_has_its_own_limit(watchdog, clock, reports):
    with watchdog.phase("compile"):
        clock.advance(1.9)
        assert reports.empty()
        clock.advance(0.2)
        assert only(reports).startswith("compile has been waiting for 2.1 s (the first time)")
    with watchdog.phase("save"):  # not named in `first`
        clock.advance(599)
        assert only(reports).startswith("compile ended")
        clock.advance(2)
        assert only(reports).startswith("save has been waiting for 601 s")


def test_of_nested_phases_the_innermost_counts(watchdog, clock, reports):
    for name in ("evaluation", "input"):
        pass_phase(watchdog, clock, name, 0.01)
    with watchdog.phase("evaluation"):
        for _ in range(3):
            pass_phase(watchdog, clock, "input", 0.04)
            pass_phase(watchdog, clock, "unheard of", 0.04)
        with watchdog.phase("input"):
            clock.advance(0.3)
            # The median of its own past, 0.04, allows 0.4 by now; the outer one's only 0.1.
            assert reports.empty()
        clock.advance(0.0)
        assert only(reports).startswith("evaluation has been waiting for 0.54 s")
    assert only(reports) == "evaluation ended after all, after 0.54 s"


def test_between_phases_nothing_is_late(watchdog, clock, reports):
    pass_phase(watchdog, clock, "step", 0.01)
    clock.now += 1e6
    pass_phase(watchdog, clock, "step", 0.01)
    assert reports.empty()


def test_an_exception_passes_and_ends_the_phase(watchdog, clock, reports):
    pass_phase(watchdog, clock, "outer", 0.01)
    with watchdog.phase("outer"):
        with pytest.raises(StopIteration), watchdog.phase("input"):
            next(iter(()))
        clock.advance(0.2)
        assert only(reports).startswith("outer has been waiting")


def test_watchdog_continues_when_reporting_fails(clock):
    said = []

    def say(message: str) -> None:
        said.append(message)
        raise OSError("the terminal is gone")

    with Watchdog(say, least=0.05, clock=clock, interval=0.001) as watchdog:
        for seconds in (0.01, 0.01, 0.01, 0.2, 0.2):
            pass_phase(watchdog, clock, "step", seconds)
    assert [message.split()[1] for message in said] == ["has", "ended", "has", "ended"]


def test_thread_ends_with_the_watchdog():
    with Watchdog(print, interval=0.001):
        assert "watchdog" in [thread.name for thread in threading.enumerate()]
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
