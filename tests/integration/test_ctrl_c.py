"""Ctrl-C as a terminal sends it: to train.py and its data workers, once and again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.runner import ROOT
from tests.integration.stress import newest, wait_for_step

pytestmark = pytest.mark.slow  # train.py in processes of its own

# The small model; a checkpoint whose step is in the environment is never whole.
CONFIG = """
import os, time
from orbax.checkpoint._src.path import atomicity
from segret_jax.models.segret import variants
from tests.conftest import MINI
from tests.integration.runner import config_of

finalize = atomicity.AtomicRenameTemporaryPath.finalize

async def slow(self, *args, **kwargs):
    name = self.get_final().name
    if name.isdigit() and int(name) >= int(os.environ.get("HANGS_FROM", "1000000")):
        time.sleep(60)
    await finalize(self, *args, **kwargs)

def get_config():
    variants.VARIANTS["tiny"] = MINI
    atomicity.AtomicRenameTemporaryPath.finalize = slow
    config = config_of(200)
    config.data.workers = 2
    return config
"""


def start(workdir: Path, *args: str, **environment: str) -> subprocess.Popen:
    """Start train.py in a process group of its own; what it prints goes to `printed`."""
    config = workdir.parent / "small.py"
    config.write_text(CONFIG)
    command = [sys.executable, "train.py", "--config", str(config), "--workdir", str(workdir)]
    with (workdir.parent / "printed").open("w") as file:
        return subprocess.Popen(
            [*command, *args], cwd=ROOT, text=True, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, start_new_session=True,
        )  # fmt: skip


def test_a_second_press_while_saving_is_one_line_and_the_run_continues(tmp_path):
    workdir, printed = tmp_path / "run", tmp_path / "printed"
    process = start(workdir, "--config.train.save_every=5", HANGS_FROM="6")
    try:
        wait_for_step(process, workdir, printed)
        deadline = time.monotonic() + 20
        while not list((workdir / "checkpoints").glob("10.*tmp*")):  # saving, for ever
            assert process.poll() is None, printed.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) > 1
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=5) == 130
    finally:
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert all(worker.status() == psutil.STATUS_ZOMBIE for worker in alive)
    text = printed.read_text()
    assert "Traceback" not in text
    _, _, after = text.partition("stopping after this step, saving; press Ctrl-C again")
    last = "stopped at once; the same command continues from the checkpoint of step 5"
    assert after.splitlines()[-1] == last
    assert (newest(workdir), (workdir / "status").read_text()) == (5, "stopped\n")

    process = start(workdir, "--config.train.save_every=5")
    try:
        wait_for_step(process, workdir, printed)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=20) == 0, printed.read_text()
    finally:
        process.kill()
    assert "continuing at step 5" in printed.read_text()
    assert "damaged" not in printed.read_text()
    assert newest(workdir) > 5
    assert not list((workdir / "checkpoints").glob("*tmp*"))
