"""CamVid's layout from files to a comparison: prepare, verify, check, train, eval, compare.

Every step is the program that a user starts, called in this process with the small model; the
photographs are small generated scenes.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segret_jax.cli import compare as compare_cli
from segret_jax.cli import data as data_cli
from segret_jax.cli import eval as eval_cli
from segret_jax.cli import train as train_cli
from segret_jax.data.datasets import get_dataset
from tests.conftest import small_models
from tests.data.pairs import write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mini")]

ROOT = Path(__file__).parents[2]
TRAINING = (
    "data.crop=32,32", "data.resize_base=48,32", "eval.resize_target=48,32",
    "train.batch_size=2", "train.steps=4", "train.eval_every=4", "train.log_every=1",
)  # fmt: skip
PROTOCOLS = {
    "whole": (),
    "slide": ("eval.mode=slide", "eval.window=32,32", "eval.stride=16,16"),
    "scales": ("eval.scales=1.0,1.5", "eval.flip=true"),
    "all": (
        "eval.mode=slide", "eval.window=32,32", "eval.stride=16,16", "eval.scales=1.0,1.5",
        "eval.flip=true", "eval.batch_size=2",
    ),
}  # fmt: skip


def run(
    main: Callable[[list[str]], Any],
    *arguments: object,
    settings: tuple[str, ...] = (),
    status: int = 0,
) -> str:
    """Call a program's `main` and return what it prints."""
    ended: Any = 0
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main([*map(str, arguments), *(f"--config.{setting}" for setting in settings)])
        except SystemExit as end:
            ended = end.code or 0
    assert ended == status
    return printed.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files, the shards and a run trained from the shards."""
    top = tmp_path_factory.mktemp("shards")
    spec = get_dataset("camvid")
    write_dataset(top / "files", spec, spec.layouts[0], {"training": 6, "validation": 4})
    places = ("--source", top / "files", "--data_dir", top / "shards")
    assert "6 pairs" in run(data_cli.main, "prepare", "camvid", *places, "--shards", 2)
    assert "as it was written" in run(data_cli.main, "verify", top / "shards")
    report = ("--dataset", "camvid", "--report", top / "report")
    assert "camvid training: 6 pairs" in run(data_cli.main, "check", top / "shards", *report)
    assert (top / "report" / "index.html").is_file()
    config = ("--config", ROOT / "configs/camvid_tiny_cpu.py", "--workdir", top / "run")
    settings = (*TRAINING, f"data.root={top / 'shards'}")
    with small_models():
        assert "mIoU" in run(train_cli.main, *config, settings=settings)
    return top


def evaluate(folder: Path, name: str, *settings: str) -> Path:
    out = folder / name
    run(eval_cli.main, "--workdir", folder / "run", "--out", out, settings=settings)
    return out / "metrics.json"


def test_every_protocol_evaluates_and_only_equal_ones_compare(folder):
    results = {name: evaluate(folder, name, *options) for name, options in PROTOCOLS.items()}
    ids = {json.loads(file.read_text())["protocol"]["id"] for file in results.values()}
    assert len(ids) == len(PROTOCOLS)
    # Training's last evaluation is of the same protocol and the same weights.
    same = run(compare_cli.main, results["whole"], folder / "run" / "metrics.json")
    assert re.search(r"B - A +\+0\.00  \[\+0\.00, \+0\.00\]", same)
    other = run(compare_cli.main, results["whole"], results["all"], status=1)
    assert "NOT COMPARABLE" in other
    for setting in ("mode", "scales", "flip"):
        assert f"{setting}: A " in other


def test_files_and_shards_give_the_same_result(folder):
    shards, files = (
        evaluate(folder, f"from_{name}", f"data.root={folder / name}")
        for name in ("shards", "files")
    )
    assert run(compare_cli.main, shards, files).count("[+0.00, +0.00]") == 1
    areas = [(file.parent / "per_image.npz").read_bytes() for file in (shards, files)]
    assert areas[0] == areas[1]
