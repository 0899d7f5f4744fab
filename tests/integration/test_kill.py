"""A run that is killed with SIGKILL at random moments ends with the bits of one that was not."""

import os
import signal
import subprocess
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.integration import runner
from tests.integration.stress import (
    assert_same_run,
    kill_and_continue,
    newest,
    wait_for_step,
)

pytestmark = pytest.mark.slow  # a dozen processes, each of which starts anew

STEPS = 40
# A step takes a tenth of a second at least, so that a life is a few steps, saves and evaluations.
ARGS = ("--steps", STEPS, "--save-every", 2, "--eval-every", 5, "--pause", 0.1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty steps in one go."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    runner.finish([runner.start(workdir, *ARGS)])
    return workdir


def test_kills_in_training_saves_and_evaluations_lose_nothing(whole):
    parts = whole.parent / "parts"

    def start(file: IO[str]) -> subprocess.Popen:
        return runner.start(parts, *ARGS, "--workers", 1, output=file)

    hit = kill_and_continue(start, parts, kills=5, longest=1.0)
    assert any("save" in what for what in hit)
    assert any("evaluation" in what for what in hit)
    assert_same_run(whole, parts, STEPS)


def test_sigterm_saves_and_ends_with_status_0_and_its_workers(whole):
    workdir = whole.parent / "stopped"
    with (whole.parent / "printed").open("w") as file:
        process = runner.start(workdir, *ARGS, "--workers", 1, output=file)
    wait_for_step(process, workdir, whole.parent / "printed")
    assert (workdir / "status").read_text() == "running\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    for one in (process.pid, *(worker.pid for worker in workers)):  # as schedulers do: all at once
        os.kill(one, signal.SIGTERM)
    status = process.wait(timeout=20)  # well within the 30 s of Kubernetes
    printed = (whole.parent / "printed").read_text()
    assert status == 0, printed
    assert "stopped at step" in printed
    assert (stopped := newest(workdir)) > 0
    assert (workdir / "status").read_text() == "stopped\n"
    assert not psutil.wait_procs(workers, timeout=10)[1]
    printed = runner.finish([runner.start(workdir, *ARGS)])[0]
    assert f"continuing at step {stopped}" in printed
    assert (workdir / "status").read_text() == "finished\n"
    assert_same_run(whole, workdir, STEPS)
