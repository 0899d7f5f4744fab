"""Faulty folders at the entry points: the file and the remedy are named, nothing is lost.

In this process, with a small model and a stub in the place of what would be compiled; the data is
in CamVid's layout.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segret_jax.cli import eval as eval_cli
from segret_jax.cli import predict as predict_cli
from segret_jax.cli import train as train_cli
from segret_jax.errors import InputError
from segret_jax.evaluation import inference
from segret_jax.evaluation.inference import Prediction, Predictor, Prepared
from segret_jax.evaluation.plan import Plan
from segret_jax.training import evaluator, loop

ROOT = Path(__file__).parents[2]
SIZE = (32, 48)
SETTINGS = (
    "data.crop=32,32", "data.resize_base=48,32", "eval.resize_target=48,32",
    "train.batch_size=2", "train.steps=4", "train.eval_every=2", "train.log_every=1",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("mini", "uncompiled")


class Zeros(Predictor):
    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        return [Prediction(np.zeros(i.size, np.uint8), np.zeros(i.size, bool)) for i in batch]

    def forecast(self, plan: Plan) -> str:
        return "nothing"


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step that only counts, a predictor that answers 0."""

    def make_train_step(*_: Any) -> Any:
        metrics = {"loss": jnp.ones(()), "accuracy": jnp.ones(())}
        return jax.jit(lambda state, _: (dataclasses.replace(state, step=state.step + 1), metrics))

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    monkeypatch.setattr(evaluator, "Predictor", Zeros)
    monkeypatch.setattr(inference, "Predictor", Zeros)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six training and two validation pairs."""
    rng = np.random.default_rng(0)
    for split, count in (("training", 6), ("validation", 2)):
        for i in range(count):
            label = np.repeat(rng.integers(0, 11, (4, 6)), 8, axis=0).repeat(8, axis=1)
            image = np.repeat(20 * label[..., None], 3, axis=2) + rng.integers(0, 30, (*SIZE, 3))
            for folder, pixels, suffix in (("images", image, "jpg"), ("annotations", label, "png")):
                path = tmp_path / "data" / folder / split / f"{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "data"


@dataclasses.dataclass
class Faulty:
    data: Path

    def image(self, i: int = 0, split: str = "training") -> Path:
        return self.data / "images" / split / f"{i}.jpg"

    def label(self, i: int = 0, split: str = "training") -> Path:
        return self.data / "annotations" / split / f"{i}.png"

    def truncate(self, *which: Any) -> Path:
        path = self.image(*which)
        path.write_bytes(path.read_bytes()[:300])
        return path


@pytest.fixture
def faulty(data: Path) -> Faulty:
    return Faulty(data)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def train(faulty: Faulty, workdir: Path, *overrides: str) -> None:
    settings = [f"--config.{s}" for s in (*SETTINGS, f"data.root={faulty.data}", *overrides)]
    config = str(ROOT / "configs" / "camvid_tiny_cpu.py")
    train_cli.main(["--config", config, "--workdir", str(workdir), *settings])


def error_of_training(faulty: Faulty, workdir: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        train(faulty, workdir, *overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 or (len(lines) == 3 and "segret demo" in lines[2])
    return str(caught.value)


def records(workdir: Path, kind: str) -> Iterator[dict[str, Any]]:
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == kind:
            yield record


# Before the first step


def test_pairs_and_folders_are_checked_before_anything_is_written(faulty, workdir):
    faulty.label(1).unlink()
    assert error_of_training(faulty, workdir).startswith("1 image without label (1) in ")
    faulty.image(1).unlink()
    faulty.image(2, "validation").touch()  # found now, not after the first thousand steps
    assert error_of_training(faulty, workdir).startswith("1 image without label (2) in ")
    for path in faulty.image().parent.iterdir():
        path.unlink()
    folder = re.escape(str(faulty.image().parent))
    message = rf"no \*\.jpg in {folder}; camvid needs images/training/\*\*/\*\.jpg with.*\n.*CamVid"
    assert re.match(message, error_of_training(faulty, workdir))
    missing = error_of_training(faulty, workdir, "data.root=/nowhere")
    assert missing.startswith("there is no folder /nowhere; camvid needs ")
    assert "\nget camvid: the folder CamVid of " in missing
    assert "--config.data.root=DIR" in missing
    assert not workdir.exists()


def test_labels_that_count_from_1_are_reported_before_the_start(faulty, workdir):
    for i in range(6):
        Image.fromarray(np.full(SIZE, 6 + i, np.uint8)).save(faulty.label(i))
    message = error_of_training(faulty, workdir)
    assert "camvid, training (6 files read): the files hold 11, one more than the last" in message
    assert not workdir.exists()


# While it trains


def test_a_truncated_image_is_named(faulty, workdir):
    for i in range(6):
        faulty.truncate(i)
    message = error_of_training(faulty, workdir)
    assert re.match(rf"{faulty.data}/images/training/\d\.jpg: cannot be read as an image", message)
    assert message.endswith("the file is damaged or no image, download or extract it again")


def test_a_stray_label_and_sizes_that_differ_are_named(faulty, workdir):
    for i in range(6):
        stray = np.zeros(SIZE, np.uint8)
        stray[3, 7] = 77
        Image.fromarray(stray).save(faulty.label(i))
    message = error_of_training(faulty, workdir)
    stray_label = rf"{faulty.data}/annotations/training/\d\.png: label id 77 at pixel \(y=3, x=7\)"
    assert re.match(stray_label, message)
    for i in range(6):
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(faulty.label(i))
    message = error_of_training(faulty, workdir)
    assert re.search(r"\.jpg is 32x48 \(height x width\) but its label .*\.png is 8x8", message)


def test_with_skip_it_trains_reports_and_marks_the_evaluation(faulty, workdir, capsys):
    broken = [faulty.truncate(4), faulty.truncate(1, "validation")]
    train(faulty, workdir, "data.on_error=skip", "train.steps=6")
    # 12 samples are drawn in 6 steps: each of the 6 twice.
    assert [record["skipped_samples"] for record in records(workdir, "train")][-1] == 2
    content = json.loads((workdir / "metrics.json").read_text())
    assert (content["complete"], content["num_images"]) == (False, 1)
    (fault,) = content["faults"]
    assert fault.startswith(f"{broken[1]}: cannot be read as an image")
    assert "(1 images)  INCOMPLETE: 1 images left out" in capsys.readouterr().out

    # eval.py says the same, and with `stop` names the file instead
    eval_cli.main(["--workdir", str(workdir)])
    content = json.loads((workdir / "metrics.json").read_text())
    assert (content["complete"], content["faults"]) == (False, [fault])
    assert "INCOMPLETE: 1 images left out" in capsys.readouterr().out
    with pytest.raises(InputError, match=re.escape(str(broken[1]))):
        eval_cli.main(["--workdir", str(workdir), "--config.data.on_error=stop"])


def test_a_broken_picture_and_an_unwritable_folder(faulty, workdir):
    train(faulty, workdir)
    broken = faulty.truncate(1, "validation")
    where = ["--checkpoint", str(workdir), "--out", str(workdir / "out")]
    with pytest.raises(InputError, match=re.escape(f"{broken}: cannot be read as an image")):
        predict_cli.main([str(broken), *where])
    valid, a_file = faulty.image(0, "validation"), workdir / "config.json"
    with pytest.raises(InputError, match=re.escape(f"cannot write to --out {a_file}")):
        predict_cli.main([str(valid), *where[:-1], str(a_file)])


# Nothing lost


@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_fault_in_the_middle_keeps_what_was_trained(faulty, workdir, split):
    # With seed 0 and 6 images the first batch does not read image 4.
    broken = faulty.truncate(*{"training": (4,), "validation": (1, "validation")}[split])
    assert error_of_training(faulty, workdir).startswith(f"{broken}: ")
    trained = [record["step"] for record in records(workdir, "train")]
    assert trained
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert saved == [trained[-1]]
