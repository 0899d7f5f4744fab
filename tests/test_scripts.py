"""The launcher for one machine, with a program of the test's own in segret's place."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the launcher, and a `segret` that appends a line to `starts` and does as `act` says."""
    segret = tmp_path / ".venv/bin/segret"
    segret.parent.mkdir(parents=True)
    segret.write_text('#!/usr/bin/env bash\necho "$*" >> starts\nsource ./act\n')
    segret.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/gpus.sh", tmp_path / "scripts")
    return tmp_path


def launch(folder: Path, act: str) -> subprocess.Popen:
    (folder / "act").write_text(act)
    return subprocess.Popen(
        [folder / "scripts/gpus.sh", "runs/x", "--config", "c.py"],
        stderr=subprocess.PIPE,
        text=True,
    )


def starts(folder: Path) -> list[str]:
    file = folder / "starts"
    return file.read_text().splitlines() if file.exists() else []


def test_a_killed_run_is_started_again_until_it_ends(folder):
    process = launch(folder, '[ "$(wc -l < starts)" -ge 3 ] || kill -KILL $$')
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 0
    assert starts(folder) == ["train --workdir runs/x --config c.py"] * 3
    assert said.count("killed (status 137): starting again") == 2


def test_an_error_to_mend_is_not_tried_again(folder):
    process = launch(folder, "exit 2")
    process.communicate(timeout=20)
    assert (process.returncode, len(starts(folder))) == (2, 1)


HEEDED = "trap 'exit 0' TERM; touch ready; sleep 20 2>&- & wait"


@pytest.mark.parametrize(("act", "status"), [("touch ready; exec sleep 20", 143), (HEEDED, 0)])
def test_sigterm_is_passed_on_and_ends_it(folder, act, status):
    """Also if training dies of it, having just begun."""
    process = launch(folder, act)
    while not (folder / "ready").exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == status
    assert len(starts(folder)) == 1
