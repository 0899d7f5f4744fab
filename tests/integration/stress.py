"""Kills a run again and again at random moments; what is left must be the run that was not killed.

By hand, on the demo (half an hour on two cores):

    python -m tests.integration.stress --config configs/demo.py --kills 25
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from tests.training.test_resume import leaves, records

Start = Callable[[], subprocess.Popen]


def kill_and_continue(start: Start, workdir: Path, *, kills: int, longest: float) -> Counter[str]:
    """Start a run, kill it up to `longest` seconds after its first step, and so on; then finish it.

    Returns what the kills hit. No checkpoint that was whole may be lost.
    """
    rng, hit = random.Random(0), Counter[str]()
    for _ in range(kills):
        saved = newest(workdir)
        process = start()
        wait_for_step(process, workdir)
        time.sleep(rng.uniform(0, longest))
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive, f"{alive} outlived their parent"
        assert newest(workdir) >= saved
        hit[interrupted(workdir, process)] += 1
    saved = newest(workdir)
    assert saved > 0, "no life was long enough to save"
    process = start()
    printed = process.communicate()[0]
    assert process.returncode == 0, printed[-3000:]
    assert f"continuing at step {saved}" in printed
    return hit


def wait_for_step(process: subprocess.Popen, workdir: Path) -> None:
    """Return once the process has recorded a step of its own: beyond what was saved before it."""
    file, saved, begun = workdir / "metrics.jsonl", newest(workdir), time.time()
    while not (file.exists() and file.stat().st_mtime >= begun and last_step(file) > saved):
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)


def last_step(file: Path) -> int:
    """Return the step of the last whole record, or 0."""
    steps = re.findall(r'"step": (\d+)', file.read_text(errors="replace"))
    return int(steps[-1]) if steps else 0


def newest(workdir: Path) -> int:
    """Return the newest step whose checkpoint is whole, or 0."""
    folder = workdir / "checkpoints"
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def interrupted(workdir: Path, process: subprocess.Popen) -> str:
    """Say what a killed process was doing, by what it left."""
    bars = [line for line in process.communicate()[0].splitlines() if "%|" in line]
    if list((workdir / "checkpoints").glob("*tmp*")):
        return "save"
    return "evaluation" if bars and "evaluate" in bars[-1] else "training"


def assert_same_run(whole: Path, parts: Path, steps: int) -> None:
    """Everything that is saved is equal to the bit, and every step's loss."""
    expected, found = leaves(whole, steps), leaves(parts, steps)
    assert expected.keys() == found.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name, strict=True)
    losses = [
        {r["step"]: r["loss"] for r in records(workdir) if r["kind"] == "train"}
        for workdir in (whole, parts)
    ]
    assert losses[0] == losses[1]
    assert not list((parts / "checkpoints").glob("*tmp*"))
    assert not list(parts.glob("damaged*"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/demo.py")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--folder", type=Path, default=Path("runs/stress"))
    args, overrides = parser.parse_known_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)

    def start(workdir: Path) -> subprocess.Popen:
        command = [sys.executable, "train.py", "--config", args.config, "--workdir", str(workdir)]
        frequent = ["--config.train.log_every=1", "--config.train.save_every=2"]
        return subprocess.Popen(
            [*command, *frequent, *overrides],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    folder = args.folder.absolute()
    whole, parts = folder / "whole", folder / "parts"
    printed = start(whole).communicate()[0]
    assert (whole / "status").read_text() == "finished\n", printed[-3000:]
    seconds = sum(1 / r["steps_per_second"] for r in records(whole) if r["kind"] == "train")
    longest = 2 * seconds / (args.kills + 1)
    hit = kill_and_continue(lambda: start(parts), parts, kills=args.kills, longest=longest)
    assert_same_run(whole, parts, newest(whole))
    print(f"{sum(hit.values())} kills ({dict(hit)}): the same {newest(whole)} steps to the bit")


if __name__ == "__main__":
    main()
