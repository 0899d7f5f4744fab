"""A family that takes neither every size nor single images: trained, evaluated and used."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import segret_jax
from segret_jax.cli import eval as eval_cli
from segret_jax.cli import predict as predict_cli
from segret_jax.config import Config, DataConfig, EvalConfig, TrainConfig, validate
from segret_jax.data.decode import decode_label
from segret_jax.evaluation.results import read
from segret_jax.models.families import FAMILIES
from segret_jax.models.family import Implementation
from segret_jax.training import loop


class Network(nnx.Module):
    """One matrix product per pixel, of inputs that the family admits."""

    stride = 1

    def __init__(self, num_classes: int, rngs: nnx.Rngs):
        self.classify = nnx.Linear(3, num_classes, rngs=rngs)

    def __call__(self, image: jax.Array, *, train: bool = False, keys: Any = None) -> jax.Array:
        FAMILIES["segret"].check_size("the input", image.shape[1:3])
        assert len(image) > 1 or not train
        return self.classify(image).astype(jnp.float32)


@pytest.fixture(autouse=True)
def _family(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(model: Any, num_classes: int, *, platform: Any, rngs: nnx.Rngs) -> Network:
        return Network(num_classes, rngs)

    family = dataclasses.replace(
        FAMILIES["segret"], multiple_of=32, min_side=33, min_batch=2,
        load=lambda: Implementation(build=build),
    )  # fmt: skip
    monkeypatch.setitem(FAMILIES, "segret", family)


def test_each_command_gives_the_network_inputs_that_it_admits(tmp_path: Path):
    """The scenes are 32x96 and stay so at the size of the evaluation; the network sees 64x96."""
    run = tmp_path / "run"
    config = Config(
        data=DataConfig(
            crop=(64, 64), resize_base=(96, 32), synthetic_size=(32, 96), synthetic_train=2,
            synthetic_validation=2,
        ),
        train=TrainConfig(batch_size=2, steps=1, eval_every=1),
        eval=EvalConfig(resize_target=(96, 32), window=(64, 64), stride=(64, 64), pictures=0),
    )  # fmt: skip
    assert loop.train(validate(config), run)
    during = read(run / "metrics.json")
    eval_cli.main(["--workdir", str(run)])
    after = read(run / "evaluation" / "metrics.json")
    assert during.protocol["must_agree"]["min_side"] == 64
    assert after.protocol["id"] == during.protocol["id"]
    assert after.content["mIoU"] == during.content["mIoU"]

    assert_a_low_photograph_is_predicted(run, tmp_path)


def assert_a_low_photograph_is_predicted(run: Path, folder: Path) -> None:
    """By the command and in Python alike: one of 10 pixels, which the network needs stretched."""
    photo = folder / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (10, 160, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    predict_cli.main([str(photo), "--checkpoint", str(run), "--out", str(folder / "out")])
    predicted = segret_jax.load(run).predict(photo).label_map
    assert predicted.shape == (10, 160)
    stored = decode_label(folder / "out" / "photo_label.png")
    np.testing.assert_array_equal(stored, predicted)
