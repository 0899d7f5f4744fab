"""`segret_jax.load`: a model with its weights in Python."""

import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import segret_jax
from segret_jax import api
from segret_jax.checkpoint import folders
from segret_jax.checkpoint.orbax_model import save_model
from segret_jax.config import Config, EvalConfig, ModelConfig
from segret_jax.data.decode import decode_image
from segret_jax.data.transforms import normalize
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Prediction, Predictor
from tests.weights import model_outputs, random_model, saved_model, table_of

NUM_CLASSES = 5
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _small(mini) -> None:
    """Of the variant `tiny`."""


def photograph(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_logits_are_those_of_the_normalized_images(tmp_path):
    parts = saved_model(tmp_path / "weights", ModelConfig(), NUM_CLASSES)
    model = segret_jax.load(str(tmp_path / "weights"))
    images = photograph(2, 40, 56, 3)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    normalized = ((images - mean) / std).astype(np.float32)
    expected = model_outputs(parts, normalized)
    assert model.classes.class_names == table_of(NUM_CLASSES).class_names
    assert model.config == Config(model=ModelConfig())
    for given in (images, normalized):
        logits = model.logits(given)
        assert logits.shape == (2, 10, 14, NUM_CLASSES)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_without_an_argument_the_weights_that_ship_are_loaded(tmp_path, monkeypatch):
    saved_model(tmp_path / "trained", ModelConfig(), NUM_CLASSES)
    segret_jax.load(tmp_path / "trained").save_pretrained(tmp_path / "shipped" / "a")
    monkeypatch.setattr(folders, "SHIPPED", tmp_path / "shipped")
    assert segret_jax.load().checkpoint == tmp_path / "shipped" / "a"


def test_predict_gives_the_label_map_of_the_predictor(tmp_path):
    bundle = random_model(ModelConfig(), NUM_CLASSES)
    config = Config(eval=EvalConfig(resize_target=(64, 64), flip=True))
    save_model(
        tmp_path / "run" / "checkpoints" / "4", config=config, table=table_of(NUM_CLASSES),
        bundle=bundle, source={},
    )  # fmt: skip
    image = photograph(50, 77, 3)
    found = segret_jax.load(tmp_path / "run").predict(image)
    predictor = Predictor(bundle, config.eval)
    np.testing.assert_array_equal(found.label_map, predictor.label_map(image), strict=True)
    assert len(np.unique(found.label_map)) > 1

    probabilities = predictor.probabilities(image)
    assert found.probabilities.dtype == found.confidence.dtype == np.float16
    assert found.probabilities is found.probabilities
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-3)
    np.testing.assert_allclose(found.confidence, probabilities.max(-1), atol=1e-3)


@pytest.fixture
def sees(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives the pixels a model would see."""
    seen: list[np.ndarray] = []

    class Watches(Predictor):
        def __init__(self):
            pass

        def prepare(self, image: np.ndarray, *, padding: Any = None) -> Any:
            seen.append(image)
            return image

        def scores(self, batch: Any) -> Any:
            return Scores(batch[0])

    class Scores:
        def __init__(self, image: np.ndarray):
            self.image = image

        def predictions(self) -> list[Prediction]:
            return [Prediction(self.image[..., 0] % 5, self.image[..., 0] > 255)]

        def confidence(self) -> Any: ...

        def probabilities(self) -> Any: ...

    model = object.__new__(api.Model)  # without weights
    model.classes = table_of(NUM_CLASSES)
    model.__dict__["_predictor"] = Watches()

    def sees(image: Any) -> np.ndarray:
        found = model.predict(image)
        if isinstance(image, list):
            assert [one.label_map.shape for one in found] == [x.shape[:2] for x in image]
        return seen.pop()

    return sees


def test_predict_takes_arrays_pil_images_and_files_alike(sees, tmp_path):
    pixels = photograph(20, 30, 3)
    image, file = Image.fromarray(pixels), tmp_path / "a.png"
    image.save(file)
    for given in (pixels, image, Image.open(file), file, str(file), [pixels[1:], pixels]):
        np.testing.assert_array_equal(sees(given), pixels)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_a_pil_image_may_have_any_mode_of_8_bits(sees, mode):
    image = Image.fromarray(photograph(20, 30, 3))
    image = image.convert("RGBA" if mode in ("LA", "RGBA") else "RGB")
    lab = Image.frombytes("LAB", (30, 20), photograph(20, 30, 3).tobytes())
    image = lab if mode == "LAB" else image.convert(mode)
    seen = sees(image)
    assert (seen.shape, seen.dtype) == ((20, 30, 3), np.uint8)
    if mode == "P":
        np.testing.assert_array_equal(seen, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pil_images_and_files_are_turned_as_their_exif_data_says(sees, tmp_path, suffix):
    exif, file = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = 6
    Image.fromarray(photograph(20, 30, 3)).save(file, exif=exif)
    with Image.open(file) as image:
        assert sees(image).shape == sees(file).shape == (30, 20, 3)
        np.testing.assert_array_equal(sees(image), decode_image(file))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pil_images_of_more_bits_are_rejected(sees, tmp_path, dtype):
    image = Image.fromarray(np.full((4, 4), 300, dtype))
    with pytest.raises(InputError, match=r"mode .*; give one with 8 bits per channel"):
        sees(image)


def test_a_missing_file_is_reported(sees, tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg: no such file"):
        sees(tmp_path / "none.jpg")


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function: the folder for compiled programs after `load`, which `before` had set."""
    tests = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")

    def folder(before: str | None, path: Path) -> str:
        jax.config.update("jax_compilation_cache_dir", before)
        with pytest.raises(InputError, match="no checkpoint in"):
            segret_jax.load(path)
        return jax.config.jax_compilation_cache_dir

    yield folder
    jax.config.update("jax_compilation_cache_dir", tests)


def test_load_keeps_compiled_programs_where_the_commands_do(cache_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Path(cache_folder(None, tmp_path)).parent == tmp_path / "segret_jax"


def test_load_respects_a_folder_that_the_program_has_chosen(cache_folder, tmp_path):
    assert cache_folder(str(tmp_path), tmp_path) == str(tmp_path)


def test_the_version_is_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "segret_jax.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", segret_jax.__version__)


def test_a_classifier_has_logits_alone(tmp_path):
    parts = saved_model(tmp_path / "rmt", ModelConfig(task="classification"), 7)
    model = segret_jax.load(tmp_path / "rmt")
    image = photograph(32, 64, 3)
    expected = model_outputs(parts, normalize(image)[None])
    np.testing.assert_allclose(model.logits(image[None]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="the classifier rmt_tiny, which does not segment"):
        model.predict(image)


def test_videos_and_folders_are_left_to_the_command(sees, tmp_path):
    for path in (tmp_path, tmp_path / "drive.mp4"):
        with pytest.raises(InputError, match="give pictures; segret predict also takes videos"):
            sees(path)


def test_images_of_another_form_are_rejected(tmp_path):
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
    with pytest.raises(InputError, match=r"segret convert .*\.pth .*/released$"):
        segret_jax.load(tmp_path / "released.pth")


def test_importing_the_package_does_not_import_jax():
    code = "import sys, segret_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
