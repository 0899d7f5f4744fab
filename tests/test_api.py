"""`segret_jax.load`: a model with its weights in Python."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import segret_jax
from segret_jax.config import Config, EvalConfig, ModelConfig
from segret_jax.data.transforms import normalise
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Predictor
from segret_jax.training.checkpoint import save_model
from tests.weights import outputs_of, random_model, saved_model, table_of

NUM_CLASSES = 5


@pytest.fixture(autouse=True)
def _small(mini) -> None:
    """Of the variant `tiny`."""


def photograph(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_logits_are_those_of_the_normalised_images(tmp_path):
    parts = saved_model(tmp_path / "weights", ModelConfig(), NUM_CLASSES)
    model = segret_jax.load(str(tmp_path / "weights"))
    images = photograph(2, 40, 56, 3)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    normalised = ((images - mean) / std).astype(np.float32)
    expected = outputs_of(parts, normalised)
    assert model.classes.class_names == table_of(NUM_CLASSES).class_names
    assert model.config == Config(model=ModelConfig())
    for given in (images, normalised):
        logits = model.logits(given)
        assert logits.shape == (2, 10, 14, NUM_CLASSES)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_predict_gives_the_label_map_of_the_predictor(tmp_path):
    graph, params, batch_stats = random_model(ModelConfig(), NUM_CLASSES)
    config = Config(eval=EvalConfig(resize_target=(64, 64), flip=True))
    save_model(
        tmp_path / "run" / "checkpoints" / "4", config=config, table=table_of(NUM_CLASSES),
        params=params, batch_stats=batch_stats, source={},
    )  # fmt: skip
    image = photograph(50, 77, 3)
    found = segret_jax.load(tmp_path / "run").predict(image)
    expected = Predictor(graph, params, batch_stats, config.eval).label_map(image)
    np.testing.assert_array_equal(found, expected, strict=True)
    assert len(np.unique(found)) > 1


def test_a_classifier_has_logits_alone(tmp_path):
    parts = saved_model(tmp_path / "rmt", ModelConfig(task="classification"), 7)
    model = segret_jax.load(tmp_path / "rmt")
    image = photograph(32, 64, 3)
    expected = outputs_of(parts, normalise(image)[None])
    np.testing.assert_allclose(model.logits(image[None]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="the classifier rmt_tiny, which does not segment"):
        model.predict(image)


def test_images_of_another_form_are_refused(tmp_path):
    saved_model(tmp_path / "weights", ModelConfig(), NUM_CLASSES)
    model = segret_jax.load(tmp_path / "weights")
    logits, predict = (inspect.unwrap(f) for f in (type(model).logits, type(model).predict))
    with pytest.raises(InputError, match=r"images are uint8 of \(32, 32, 3\); give \[b, H, W, 3\]"):
        logits(model, photograph(32, 32, 3))
    with pytest.raises(InputError, match=r"the image is float32 of \(32, 32, 3\); give uint8"):
        predict(model, photograph(32, 32, 3).astype(np.float32))
    with pytest.raises(InputError, match=r"images are uint8 of \(0, 32, 32, 3\)"):
        logits(model, photograph(0, 32, 32, 3))
    with pytest.raises(InputError, match="no checkpoint in"):
        segret_jax.load(tmp_path)
    (tmp_path / "released.pth").touch()
    with pytest.raises(InputError, match=r"python -m segret_jax\.convert .*\.pth .*/released$"):
        segret_jax.load(tmp_path / "released.pth")


def test_importing_the_package_does_not_import_jax():
    code = "import sys, segret_jax; sys.exit('jax' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
