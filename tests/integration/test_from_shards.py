"""CamVid's layout from files to a comparison: prepare, verify, check, train, eval, compare.

Every step is the program that a user starts; the photographs are small generated scenes.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segret_jax.data.datasets import get_dataset
from tests.data.pairs import write_dataset

pytestmark = pytest.mark.slow  # a dozen programs, each compiling for itself

ROOT = Path(__file__).parents[2]
TRAINING = (
    "data.crop=32,32", "data.resize_base=48,32", "eval.resize_target=48,32",
    "train.batch_size=2", "train.steps=4", "train.eval_every=4", "train.log_every=1",
)  # fmt: skip
PROTOCOLS = {
    "whole": (),
    "slide": ("eval.mode=slide", "eval.window=32,32", "eval.stride=16,16"),
    "scales": ("eval.scales=1,1.5", "eval.flip=true"),
    "all": (
        "eval.mode=slide", "eval.window=32,32", "eval.stride=16,16", "eval.scales=1,1.5",
        "eval.flip=true", "eval.batch_size=2",
    ),
}  # fmt: skip


def run(*command: object, settings: tuple[str, ...] = (), status: int = 0) -> str:
    """Run a program of the project and return what it prints."""
    arguments = [*map(str, command), *(f"--config.{setting}" for setting in settings)]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files, the shards and a run trained from the shards."""
    top = tmp_path_factory.mktemp("shards")
    spec = get_dataset("camvid")
    write_dataset(top / "files", spec, spec.layouts[0], {"training": 6, "validation": 4})
    data = ("-m", "segret_jax.data")
    places = ("--source", top / "files", "--data_dir", top / "shards")
    assert "6 pairs" in run(*data, "prepare", "camvid", *places, "--shards", 2)
    assert "as it was written" in run(*data, "verify", top / "shards")
    report = ("--dataset", "camvid", "--report", top / "report")
    assert "camvid training: 6 pairs" in run(*data, "check", top / "shards", *report)
    assert (top / "report" / "index.html").is_file()
    config = ("--config", "configs/camvid_tiny_cpu.py", "--workdir", top / "run")
    settings = (*TRAINING, f"data.root={top / 'shards'}")
    assert "mIoU" in run("train.py", *config, settings=settings)
    return top


def evaluate(folder: Path, name: str, *settings: str) -> Path:
    out = folder / name
    run("eval.py", "--workdir", folder / "run", "--out", out, settings=settings)
    return out / "metrics.json"


def test_every_protocol_evaluates_and_only_equal_ones_compare(folder):
    results = {name: evaluate(folder, name, *options) for name, options in PROTOCOLS.items()}
    ids = {json.loads(file.read_text())["protocol"]["id"] for file in results.values()}
    assert len(ids) == len(PROTOCOLS)
    # Training's last evaluation is of the same protocol and the same weights.
    same = run("-m", "segret_jax.compare", results["whole"], folder / "run" / "metrics.json")
    assert re.search(r"B - A +\+0\.00  \[\+0\.00, \+0\.00\]", same)
    other = run("-m", "segret_jax.compare", results["whole"], results["all"], status=1)
    assert "NOT COMPARABLE" in other
    for setting in ("mode", "scales", "flip"):
        assert f"{setting}: A " in other


def test_files_and_shards_give_the_same_result(folder):
    shards, files = (
        evaluate(folder, f"from_{name}", f"data.root={folder / name}")
        for name in ("shards", "files")
    )
    assert run("-m", "segret_jax.compare", shards, files).count("[+0.00, +0.00]") == 1
    areas = [(file.parent / "per_image.npz").read_bytes() for file in (shards, files)]
    assert areas[0] == areas[1]
