"""The processes of a measurement, with programs of the test's own in their place."""

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.schedule import Schedule, Task

# Writes what it does, and when, to the file `events`; `compile` and `time` are its seconds.
PROGRAM = """
import sys, time
from pathlib import Path
name, compile, timed, status = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
events = Path("events").open("a", buffering=1)
end = time.monotonic() + compile
while time.monotonic() < end:
    events.write(f"{time.monotonic()} {name} compiles\\n")
    time.sleep(0.01)
print("ready", flush=True)
if sys.stdin.readline():
    events.write(f"{time.monotonic()} {name} begins\\n")
    time.sleep(timed)
    events.write(f"{time.monotonic()} {name} ends\\n")
sys.exit(status)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def program(name: str, *, compile: float = 0.0, timed: float = 0.0, status: int = 0) -> Task:
    arguments = [name, str(compile), str(timed), str(status)]
    return Task(name, lambda seconds, attempt: [sys.executable, "-c", PROGRAM, *arguments])


def run(tasks: list[Task], *, seconds: float = 60.0, parallel: int = 4) -> tuple[Schedule, str]:
    said: list[str] = []
    schedule = Schedule(
        tasks, deadline=time.monotonic() + seconds, parallel=parallel, log=Path("log"),
        env=dict(os.environ), say=said.append,
    )  # fmt: skip
    schedule.run()
    return schedule, "\n".join(said)


def events() -> list[tuple[float, str, str]]:
    lines = Path("events").read_text(encoding="utf-8").splitlines()
    return sorted((float(at), name, what) for at, name, what in map(str.split, lines))


def test_nothing_compiles_while_another_is_timed_and_it_continues_afterward():
    run([program("slow", compile=1.2), program("fast", compile=0.1, timed=0.3)])
    found = events()
    begin, end = (
        next(at for at, *rest in found if rest == ["fast", w]) for w in ("begins", "ends")
    )
    compiling = [at for at, name, what in found if (name, what) == ("slow", "compiles")]
    assert [at for at in compiling if begin <= at <= end] == []
    assert any(at < begin for at in compiling)
    assert any(rest == ["slow", "ends"] for _, *rest in found)


def test_at_the_deadline_all_are_killed_and_what_was_found_stays():
    begun = time.monotonic()
    _, said = run(
        [program("quick", timed=0.05), program("endless", compile=60)], seconds=2.0, parallel=2
    )
    assert time.monotonic() - begun < 4
    assert any(rest == ["quick", "ends"] for _, *rest in events())
    assert "stopped, the time is up: endless" in said
    last = events()[-1]
    time.sleep(0.1)
    assert events()[-1] == last  # no process is left that writes


def test_a_killed_process_stops_no_other_and_is_tried_once_more():
    killed = Task("killed", lambda seconds, attempt: ["sh", "-c", "kill -9 $$"])
    schedule, said = run([killed, program("good", timed=0.05)])
    assert schedule.crashes == {"killed": "its process ended with status -9, twice"}
    assert said.count("started: killed") == 2
    assert any(rest == ["good", "ends"] for _, *rest in events())


def test_children_in_sessions_of_their_own_are_stopped_and_killed_too():
    """As the compile processes of PyTorch are."""
    child = "import time\nwhile True: print(1, file=open('child', 'a')); time.sleep(0.01)"
    parent = (
        f"import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); "
        "time.sleep(60)"
    )
    task = Task("parent", lambda seconds, attempt: [sys.executable, "-c", parent])
    run([task], seconds=1.0)
    size = Path("child").stat().st_size
    assert size > 0
    time.sleep(0.1)
    assert Path("child").stat().st_size == size


def test_a_process_that_hangs_while_it_is_timed_does_not_stop_the_others(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.schedule.LONGEST", 0.3)
    schedule, _ = run([program("hangs", timed=60), program("good", timed=0.05)])
    assert schedule.crashes == {"hangs": "its process ended with status -9, twice"}
    assert any(rest == ["good", "ends"] for _, *rest in events())


def test_what_does_not_fit_is_not_started():
    asked = []

    def command(seconds: float, attempt: int) -> None:
        asked.append((seconds, attempt))

    _, said = run([Task("long", command)], seconds=5)
    assert "started" not in said
    assert 4 < asked[0][0] <= 5
