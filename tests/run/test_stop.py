"""StopRequest: what a signal sets and says, and what a second Ctrl-C ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from segret_jax.parallel.mesh import data_mesh
from segret_jax.run import interrupts
from segret_jax.run.stop import StopRequest

FIRST = "stopping after this step, saving; press Ctrl-C again to quit without saving"
ROOT = Path(__file__).parents[2]

# The main thread is in C, as while XLA compiles: it waits for a lock that it holds. Python's own
# handlers would run when it returns, which is never.
NATIVE = """
import ctypes, multiprocessing, sys, time
from pathlib import Path
from segret_jax.run.interrupts import interrupt_once
from segret_jax.parallel.mesh import data_mesh
from segret_jax.run.stop import StopRequest

if __name__ == "__main__":
    native, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    with eval(sys.argv[1]):
        print(worker.pid, flush=True)
        native.pthread_mutex_lock(lock)
        native.pthread_mutex_lock(lock)
"""


@pytest.fixture
def last_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said instead of ending this process."""
    said: list[str] = []
    monkeypatch.setattr(interrupts, "print_below_bar", said.append)
    monkeypatch.setattr(interrupts, "quit_at_once", lambda say: say())
    return said


@pytest.fixture
def time_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the clock of the presses."""
    now = [1000.0]
    monkeypatch.setattr(interrupts, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def send(number: int) -> None:
    """Send a signal to this process and wait until it is answered."""
    os.kill(os.getpid(), number)
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGINT, FIRST), (signal.SIGTERM, "SIGTERM: stopping after this step, saving")],
)
def test_a_signal_is_answered_with_one_line_and_the_handlers_restored(
    number, line, tmp_path, capsys, last_lines
):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest(data_mesh(), tmp_path) as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        send(number)  # schedulers repeat theirs; make passes on what the program has already
    assert capsys.readouterr() == ("", f"{line}\n")
    assert last_lines == []
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_press_says_which_checkpoint_is_the_newest(
    tmp_path, capsys, last_lines, time_passes
):
    quits: list[int] = []
    with StopRequest(data_mesh(), tmp_path) as stop:
        stop.on_quit = lambda: quits.append(1)
        send(signal.SIGTERM)  # is no press
        send(signal.SIGINT)
        time_passes(0.4)
        send(signal.SIGINT)
        assert (last_lines, quits) == ([], [])
        time_passes(0.2)
        send(signal.SIGINT)
        assert last_lines.pop() == "stopped at once; the same command starts from step 0"
        for name in ("5", "10", "15.orbax-checkpoint-tmp"):
            (tmp_path / "checkpoints" / name).mkdir(parents=True)
        time_passes(0.6)
        send(signal.SIGINT)
    then = "the same command continues from the checkpoint of step 10"
    assert last_lines == [f"stopped at once; {then}"]
    assert quits == [1, 1]
    assert FIRST in capsys.readouterr().err


def test_an_evaluation_is_said_to_be_canceled(tmp_path, capsys):
    with StopRequest(data_mesh(), tmp_path) as stop, stop.cancels("the evaluation"):
        send(signal.SIGINT)
    assert capsys.readouterr().err.startswith("canceling the evaluation; press Ctrl-C again")


def ends(process: psutil.Process) -> bool:
    """Wait for a process that was killed: the system takes a moment, and may leave a zombie."""
    for _ in range(50):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


@pytest.mark.parametrize(
    ("context", "first", "last"),
    [
        ("StopRequest(data_mesh(), Path('none'))", FIRST,
         "stopped at once; the same command starts from step 0"),
        ("interrupt_once()",
         "\ninterrupting after this operation; press Ctrl-C again to quit at once",
         "interrupted"),
    ],
    ids=["training", "others"],
)  # fmt: skip
def test_both_presses_are_answered_while_the_main_thread_is_in_native_code(
    context, first, last, tmp_path
):
    script = tmp_path / "native.py"
    script.write_text(NATIVE)
    process = subprocess.Popen(
        [sys.executable, str(script), context], text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        worker = psutil.Process(int(process.stdout.readline()))
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        for line in first.splitlines():
            assert process.stderr.readline() == f"{line}\n"
        time.sleep(interrupts.REPEAT_WINDOW)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=3)
        assert printed == ("", f"\n{last}\n")
        assert process.returncode == 130
        assert ends(worker)
    finally:
        process.kill()
