"""Kills a run again and again at random moments; what is left must be the run that was not killed.

By hand, on the demo (half an hour on two cores):

    python -m tests.integration.stress --config demo --kills 25
"""

import argparse
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import psutil

from tests.runs import leaves, records

Start = Callable[[IO[str]], subprocess.Popen]  # given the file to print to
LENGTHS = ("--config.train.steps=200", "--config.train.eval_every=10")


def kill_and_continue(start: Start, workdir: Path, *, kills: int, longest: float) -> Counter[str]:
    """Start a run, kill it, start it again, and so on; then let it finish.

    One kill falls up to `longest` seconds after a step, the next into a save, the next into an
    evaluation; one that came too late for its moment is made again, three times in all. Returns
    what was hit. No checkpoint that was whole may be lost.
    """
    rng, hit, printed = random.Random(0), Counter[str](), workdir.parent / "printed"
    moments = list(itertools.islice(itertools.cycle(("any", "save", "evaluation")), kills))
    retries = 3
    for moment in moments:  # which grows by those to make again
        saved = newest(workdir)
        with printed.open("w") as file:
            process = start(file)
        wait_for_step(process, workdir, printed)
        workers = psutil.Process(process.pid).children(recursive=True)
        while moment != "any" and moment not in doing(workdir, printed):
            assert process.poll() is None, f"ended before the kill: {printed.read_text()[-3000:]}"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, {"any": longest, "save": 0.01, "evaluation": 0.1}[moment]))
        process.kill()
        process.wait()
        found = doing(workdir, printed)
        hit[" and ".join(found)] += 1
        if moment not in ("any", *found) and retries:
            moments.append(moment)
            retries -= 1
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive, f"{alive} outlived their parent"
        assert newest(workdir) >= saved
    saved = newest(workdir)
    assert saved > 0, "no life was long enough to save"
    with printed.open("w") as file:
        process = start(file)
    assert process.wait() == 0, printed.read_text()[-3000:]
    assert f"continuing at step {saved}" in printed.read_text()
    return hit


def wait_for_step(process: subprocess.Popen, workdir: Path, printed: Path) -> None:
    """Return once the process has recorded a step of its own: beyond what was saved before it."""
    file, saved, begun = workdir / "metrics.jsonl", newest(workdir), time.time()
    while not (file.exists() and file.stat().st_mtime >= begun and last_step(file) > saved):
        assert process.poll() is None, printed.read_text(encoding="utf-8")[-3000:]
        time.sleep(0.02)


def last_step(file: Path) -> int:
    """Return the step of the last whole record, or 0."""
    steps = re.findall(r'"step": (\d+)', file.read_text(encoding="utf-8", errors="replace"))
    return int(steps[-1]) if steps else 0


def newest(workdir: Path) -> int:
    """Return the newest step whose checkpoint is whole, or 0."""
    folder = workdir / "checkpoints"
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def doing(workdir: Path, printed: Path) -> list[str]:
    """Say what a run is at, or was when it was killed: save, evaluation, both, or training."""
    text = printed.read_text(encoding="utf-8", errors="replace")  # a character may be cut off
    shown = [part for part in re.split(r"[\r\n\x1b]+", text) if part.strip(" [A")]
    found = []
    if list((workdir / "checkpoints").glob("*tmp*")):
        found.append("save")
    if shown and shown[-1].lstrip("[A").startswith("evaluate"):
        found.append("evaluation")
    return found or ["training"]


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
    folder = args.folder.absolute()
    whole, parts = folder / "whole", folder / "parts"

    def start(workdir: Path, file: IO[str]) -> subprocess.Popen:
        command = [sys.executable, "train.py", "--config", args.config, "--workdir", str(workdir)]
        frequent = ["--config.train.log_every=1", "--config.train.save_every=2"]
        return subprocess.Popen(
            [*command, *frequent, *LENGTHS, "--config.data.synthetic_validation=8", *overrides],
            text=True, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    with (folder / "printed").open("w") as file:
        assert start(whole, file).wait() == 0, (folder / "printed").read_text()[-3000:]
    speeds = [r["steps_per_second"] for r in records(whole) if r["kind"] == "train"]
    seconds = sum(1 / speed for speed in speeds if speed)  # none of the first step
    longest = seconds / args.kills  # so that half of the steps are left to the other kills
    hit = kill_and_continue(
        lambda file: start(parts, file), parts, kills=args.kills, longest=longest
    )
    assert_same_run(whole, parts, newest(whole))
    arrays = leaves(whole, newest(whole)).values()
    print(
        f"{sum(hit.values())} kills (in {dict(hit)}): {len(arrays)} arrays of "
        f"{sum(x.size for x in arrays):,} numbers and {newest(whole)} losses, equal to the bit"
    )


if __name__ == "__main__":
    main()
