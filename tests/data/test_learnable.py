"""Data that teaches nothing stops a run with a reason, and is an error of the label doctor."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.cli import train as train_cli
from segret_jax.config import Config
from segret_jax.data.datasets import get_dataset
from segret_jax.data.learnable import check_samples
from segret_jax.data.sources import FolderSource
from segret_jax.doctor import check as doctor
from segret_jax.errors import InputError
from segret_jax.training import loop

ROOT = Path(__file__).parents[2]
NAMES = ("background", "crack")


class Own:
    """A folder with masks, and the JSON file that describes it."""

    def __init__(self, root: Path, values: list[int], count: int = 5) -> None:
        self.root, self.table = root, root / "masks.json"
        classes = [
            {"id": i, "name": name, "color": f"#0000{i:02d}", "raw_id": value}
            for i, (name, value) in enumerate(zip(NAMES, values, strict=False))
        ]
        self.table.write_text(json.dumps({"classes": classes}))
        for split in ("training", "validation"):
            for folder in ("images", "annotations"):
                (root / folder / split).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / f"{i}.jpg")
                self.write_label(i, 0, split)

    def write_label(self, i: int, corner: int, split: str = "training") -> None:
        label = np.zeros((32, 32), np.uint8)
        label[:8, :16] = corner
        Image.fromarray(label).save(self.root / "annotations" / split / f"{i}.png")

    def source(self) -> FolderSource:
        return FolderSource(get_dataset(str(self.table)), self.root, "training")

    def error_of_training(self, *overrides: str) -> str:
        workdir = self.root / "run"
        settings = (
            f"data.dataset={self.table}", f"data.root={self.root}", "data.crop=32,32",
            "data.resize_base=32,32", "train.batch_size=2", "train.steps=1", *overrides,
        )  # fmt: skip
        with pytest.raises(InputError) as caught:
            train_cli.main([
                "--config", str(ROOT / "configs" / "demo.py"), "--workdir", str(workdir),
                *(f"--config.{setting}" for setting in settings),
            ])  # fmt: skip
        assert not workdir.exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def errors_of_the_doctor(self) -> list[str]:
        diagnosis = doctor.check(get_dataset(str(self.table)), self.root, workers=1)
        return [f.message for f in diagnosis.findings if f.severity == "error"]


@pytest.fixture(autouse=True)
def without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail in the place of a run that would begin."""

    def initialize(config: Config, *_: object, **__: object) -> None:
        raise AssertionError("the run begins")

    monkeypatch.setattr(loop, "initialize", initialize)


def test_a_table_of_one_class_is_refused(tmp_path):
    own = Own(tmp_path, [0])
    message = own.error_of_training()
    assert message.startswith("the class table 'masks' has only one class, 'background'")
    assert 'add a class for all other pixels, such as "background"' in message
    assert message in own.errors_of_the_doctor()


def test_a_foreground_whose_value_is_ignored_is_refused(tmp_path):
    own = Own(tmp_path, [0, 1])
    for i in range(5):
        own.write_label(i, 255)
    message = own.error_of_training()
    assert message.startswith(
        "labels of masks, training (all 5 files read): background is the only class that occurs; "
        'if 255 is meant as a class, give it one in a JSON file of your own ("raw_id": 255)'
    )
    assert "now 255 is ignored, 12.5% of the pixels" in message
    assert any(error in message for error in own.errors_of_the_doctor())


def test_labels_of_one_class_without_any_other_value_are_refused(tmp_path):
    message = Own(tmp_path, [0, 1]).error_of_training()
    assert "background is the only class that occurs; label the other classes, too" in message


def test_a_second_class_in_the_last_label_is_found(tmp_path):
    own = Own(tmp_path, [0, 1], count=8)
    last = int(np.random.default_rng(0).permutation(8)[-1])
    own.write_label(last, 1)
    check_samples(own.source(), skip_faulty=False)


def test_a_label_that_is_ignored_entirely_is_no_second_class(tmp_path):
    own = Own(tmp_path, [0, 1])
    first = int(np.random.default_rng(0).permutation(5)[0])
    ignored = Image.fromarray(np.full((32, 32), 255, np.uint8))
    ignored.save(tmp_path / "annotations" / "training" / f"{first}.png")
    assert "background is the only class that occurs; if 255" in own.error_of_training()


def test_a_value_that_is_neither_class_nor_ignored_is_to_be_given_a_class(tmp_path):
    own = Own(tmp_path, [0, 1])
    content = json.loads(own.table.read_text(encoding="utf-8")) | {"ignore": []}
    own.table.write_text(json.dumps(content), encoding="utf-8")
    for i in range(5):
        own.write_label(i, 255)
    errors = " ".join(own.errors_of_the_doctor())
    assert '255; give them a class in your JSON file ("raw_id"), name them in "ignore"' in errors
    assert '("raw_id": 255); now 255 is no class, 12.5% of the pixels' in errors


def test_samples_that_would_all_be_skipped_are_refused(tmp_path):
    own = Own(tmp_path, [0, 1])
    own.write_label(3, 1)
    for i in range(5):
        (own.root / "images" / "training" / f"{i}.jpg").write_bytes(b"no image")
    message = own.error_of_training("data.on_error=skip")
    assert message.startswith(
        "data.on_error=skip would skip every sample: none of 5 that were read, of 5 of masks, "
        f"training, is valid; the first: {own.root}/images/training/"
    )
    Image.new("RGB", (32, 32)).save(own.root / "images" / "training" / "1.jpg")
    check_samples(own.source(), skip_faulty=True)
