"""eval.py: results go where no other's lie, and are on the disk before anything is printed."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint.orbax_model import save_model
from segret_jax.cli import eval as eval_cli
from segret_jax.config import Config
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.evaluation import inference, results
from segret_jax.evaluation.inference import Prediction, Predictor, Prepared, ScaledImage
from segret_jax.evaluation.plan import Plan, Tiling
from segret_jax.models.factory import ModelBundle
from segret_jax.parallel.mesh import data_mesh

SIZE = ("--config.data.synthetic_size=32,32", "--config.data.synthetic_validation=2")
FILES = [
    "confusion.csv", "confusion.png", "gallery.npz", "metrics.json", "per_image.npz", "report.html",
    "run.json",
]  # fmt: skip


class Reads(Predictor):
    """A predictor whose classes are the red of the pixels."""

    stride, takes_size = 4, False

    def __init__(self, bundle: ModelBundle, config: Any, **options: Any):
        self.variables, self.config, self.mesh = bundle.params, config, data_mesh()
        self.min_side = options["min_side"]

    def prepare(self, image: np.ndarray, *, padding: Any = None) -> Prepared:
        scaled = ScaledImage(image, Tiling((32, 32), (32, 32)), None)
        return Prepared((image.shape[0], image.shape[1]), [scaled])

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        maps = [image.scales[0].pixels[..., 0] % 8 for image in batch]
        return [Prediction(np.ascontiguousarray(m), m < 0) for m in maps]

    def forecast(self, plan: Plan) -> str:
        return "it will be quick"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `Reads` in the place of the model; its weights are the checkpoint's name."""
    monkeypatch.setattr(inference, "Predictor", Reads)
    monkeypatch.setattr(
        checkpoints, "load_model",
        lambda path, _: ModelBundle(None, ({"name": np.array([*path.name.encode()])},), {}),
    )  # fmt: skip


def saved(folder: Path, *, converted: bool = True) -> Path:
    """Write a checkpoint without a model; one of a run has no `source`."""
    nothing, table = {"x": np.zeros(1)}, class_table(Config().data)
    bundle: Any = ModelBundle(None, nothing, nothing)
    save_model(folder, config=Config(), table=table, bundle=bundle, source={})
    if not converted:
        shutil.rmtree(folder / "source")
    return folder


def run(*arguments: str | Path) -> None:
    eval_cli.main([*map(str, arguments), *SIZE])


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def mean_iou_and_checkpoint(folder: Path) -> tuple[float, str]:
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content["mIoU"], content["checkpoint"]


# Where results go


def test_results_of_a_converted_checkpoint_are_written_beside_it(tmp_path: Path):
    for name in ("a", "b"):
        run("--checkpoint", saved(tmp_path / "deep" / "zoo" / name))
    assert names(tmp_path) == ["deep"]  # nothing outside of the folder of the checkpoints
    assert names(tmp_path / "deep") == ["zoo"]
    assert names(tmp_path / "deep" / "zoo") == ["a", "a_evaluation", "b", "b_evaluation"]
    for name in ("a", "b"):
        folder = tmp_path / "deep" / "zoo" / f"{name}_evaluation"
        assert names(folder) == FILES
        assert mean_iou_and_checkpoint(folder)[1].endswith(f"zoo/{name}")


def test_a_converted_checkpoint_in_a_folder_named_checkpoints_is_not_a_run(tmp_path: Path):
    run("--checkpoint", saved(tmp_path / "checkpoints" / "4"))
    assert names(tmp_path) == ["checkpoints"]
    assert names(tmp_path / "checkpoints") == ["4", "4_evaluation"]


def test_results_of_a_run_are_written_into_the_run(tmp_path: Path, monkeypatch):
    saved(tmp_path / "run" / "checkpoints" / "4", converted=False)
    run("--workdir", tmp_path / "run")
    assert names(tmp_path / "run" / "evaluation") == FILES
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "evaluation").rename(tmp_path / "before")
    run("--checkpoint", "4")
    assert names(tmp_path / "run" / "evaluation") == FILES


def test_the_same_evaluation_replaces_its_result(tmp_path: Path):
    checkpoint, out = saved(tmp_path / "a"), tmp_path / "out"
    run("--checkpoint", checkpoint, "--out", out)
    before = mean_iou_and_checkpoint(out)
    (out / "confusion.csv").unlink()
    run("--checkpoint", checkpoint, "--out", out)
    assert mean_iou_and_checkpoint(out) == before
    assert names(out) == FILES


@pytest.mark.parametrize(
    ("checkpoint", "setting", "message"),
    [
        ("8", "eval.flip=false", "other weights"),
        ("4", "eval.flip=true", "flip False, not True"),
        ("4", "eval.scales=0.5,1.0", r"scales \[1.0\], not \[0.5, 1.0\]"),
        ("4", "model.dtype=bfloat16", "model.dtype 'float32', not 'bfloat16'"),
        ("4", "data.synthetic_validation=3", "other images"),
        ("4", "data.root=/foggy", "data.root '', not '/foggy'"),
    ],
)
def test_the_result_of_another_evaluation_is_not_replaced(
    tmp_path: Path, checkpoint, setting, message
):
    for step in ("4", "8"):
        saved(tmp_path / "run" / "checkpoints" / step, converted=False)
    run("--checkpoint", tmp_path / "run" / "checkpoints" / "4")
    out = tmp_path / "run" / "evaluation"
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    path = tmp_path / "run" / "checkpoints" / checkpoint
    with pytest.raises(InputError, match=rf"evaluation holds the result of .*/4 \({message}\)"):
        eval_cli.main(["--checkpoint", str(path), *SIZE, f"--config.{setting}"])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize("name", ["metrics.json", "confusion.png", "overlays/scene_000001.png"])
def test_a_users_own_file_is_not_replaced(tmp_path: Path, name):
    checkpoint = saved(tmp_path / "a")
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(InputError, match=f"{name} exists and is n.*give another --out"):
        run("--checkpoint", checkpoint, "--out", tmp_path / "out", "--overlays")
    assert file.read_text() == "mine"
    assert names(file.parent) == [file.name]


# Saved, then printed


class Closed:
    """A standard output whose reader is gone after the first line."""

    encoding = "utf-8"

    def __init__(self, error: Exception):
        self.error, self.lines = error, 0

    def write(self, text: str) -> int:
        if self.lines:
            raise self.error
        self.lines += text.count("\n")
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), UnicodeEncodeError("ascii", "ä", 0, 1, "not in range")]
)
def test_the_result_is_saved_even_if_printing_fails(tmp_path: Path, monkeypatch, error):
    checkpoint = saved(tmp_path / "a")
    monkeypatch.setattr(sys, "stdout", Closed(error))
    with pytest.raises(type(error)):
        run("--checkpoint", checkpoint, "--out", tmp_path / "out", "--overlays")
    assert names(tmp_path / "out") == sorted([*FILES, "overlays"])
    assert results.read(tmp_path / "out" / "metrics.json").content["num_images"] == 2
    assert names(tmp_path / "out" / "overlays") == ["scene_000000.png", "scene_000001.png"]
