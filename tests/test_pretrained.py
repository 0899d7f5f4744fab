"""Saved models: written, shared, and read again, whatever the files hold."""

import functools
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import segret_jax
from segret_jax.api import Model
from segret_jax.checkpoint import folders, orbax_model, pretrained
from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint.safetensors import read_safetensors, write_safetensors
from segret_jax.cli import convert, predict
from segret_jax.cli import eval as evaluate_cli
from segret_jax.config import Config, DataConfig, EvalConfig, ModelConfig, choose_family
from segret_jax.data.class_table import load_class_table
from segret_jax.digests import weights_digest
from segret_jax.errors import InputError
from segret_jax.evaluation import inference, results
from segret_jax.evaluation.pixel_counts import PixelCounts
from segret_jax.evaluation.protocol import identify
from segret_jax.models.factory import ModelBundle, abstract
from segret_jax.models.kernels import ANY_PLATFORM
from segret_jax.training import initialization
from segret_jax.trees import named_leaves
from tests.cli.test_predict import Reads
from tests.weights import flat

CAMVID = load_class_table("camvid")


@pytest.fixture(autouse=True)
def _small(mini) -> None:
    """Of the variant `tiny`."""


def model_of(family: str = "segret") -> Model:
    config = Config(
        init_from="/home/me/weights",
        data=DataConfig(dataset="camvid", root="/home/me/camvid"),
        eval=EvalConfig(resize_target=(64, 64)),
    )
    choose_family(config.model, family)
    return Model(config, CAMVID, jax.tree.map(lambda x: x, bundle_of(family)))  # to be changed


@functools.cache
def bundle_of(family: str) -> ModelBundle:
    """Return a model of noise, without the initialization, which takes seconds."""
    model, rng = ModelConfig(), np.random.default_rng(0)
    choose_family(model, family)
    shapes = abstract(model, CAMVID.num_classes)
    noise = (
        0.2 * np.abs(rng.standard_normal(x.shape, np.float32)) for x in jax.tree.leaves(shapes)
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), list(noise))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model_of().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def message(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 700
    return text


@pytest.mark.parametrize("family", ["segret", "segman"])
def test_a_saved_model_is_read_bit_for_bit(tmp_path, family):
    model = model_of(family)
    model.save_pretrained(tmp_path / "a" / "saved")
    again = segret_jax.load(tmp_path / "a" / "saved")
    before, after = flat(model.bundle.variables), flat(again.bundle.variables)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], strict=True)
    assert again.classes.to_dict() == CAMVID.to_dict()
    assert (again.config.model, again.config.eval) == (model.config.model, model.config.eval)
    assert sorted(p.name for p in (tmp_path / "a").rglob("*") if p.is_file()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", ["segret", "segman"])
def test_its_predictions_are_those_of_the_model(tmp_path, family):
    model = model_of(family)
    model.save_pretrained(tmp_path / "saved")
    image = np.random.default_rng(0).integers(0, 256, (50, 77, 3), np.uint8)
    again = segret_jax.load(tmp_path / "saved")
    found, expected = again.predict(image).label_map, model.predict(image).label_map
    np.testing.assert_array_equal(found, expected, strict=True)


def test_paths_of_the_machine_are_left_out(saved):
    assert "/home/me" not in (saved / "config.json").read_text()
    assert "/home/me" not in (saved / "README.md").read_text()


def test_float16_halves_the_file_and_is_read_as_float32(tmp_path, saved):
    model = model_of()
    model.save_pretrained(tmp_path / "half", dtype="float16")
    sizes = [(f / "model.safetensors").stat().st_size for f in (saved, tmp_path / "half")]
    num_bytes = 2 * model.bundle.num_params
    assert sizes[0] - sizes[1] == pytest.approx(num_bytes, abs=100)
    again = segret_jax.load(tmp_path / "half")
    for trees in (model.bundle.batch_stats, again.bundle.batch_stats):
        assert {x.dtype for x in jax.tree.leaves(trees)} == {np.dtype("float32")}
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float16), model.bundle.params)
    for name, array in flat(rounded).items():
        found = flat(again.bundle.params)[name]
        np.testing.assert_array_equal(found, array.astype(np.float32), strict=True)
    again.save_pretrained(tmp_path / "again")  # float32, but rounded before
    facts = json.loads((tmp_path / "again" / "config.json").read_text())["facts"]
    assert facts == {"rounded_to": "float16"}


def test_weights_that_float16_cannot_hold_are_refused(tmp_path):
    model = model_of()
    fuse = model.bundle.params["decoder"]["fuse"]
    fuse["kernel"] = fuse["kernel"] * 1e6
    text = message(lambda: model.save_pretrained(tmp_path / "a", dtype="float16"))
    assert text.startswith("params/decoder/fuse/kernel has values that are not finite in float16")
    assert "dtype is 'int8'; choose" in message(
        lambda: model.save_pretrained(tmp_path / "a", dtype="int8")
    )
    assert not (tmp_path / "a").exists()


def test_nothing_is_replaced_and_nothing_half_written_stays(tmp_path, saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()
    assert "exists: choose another folder" in message(model_of().save_pretrained, saved)
    assert (saved / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    model_of().save_pretrained(tmp_path / "empty")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    text = message(model_of().save_pretrained, tmp_path / "full")
    assert text == f"cannot write {tmp_path / 'full'}: No space left on device"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "saved"]


# The card


def front_matter(card: str) -> dict[str, Any]:
    head = card.split("---\n")[1]
    return {k: json.loads(v) for k, v in (line.split(": ", 1) for line in head.splitlines())}


def test_the_card_of_unknown_origin_claims_nothing(saved):
    card = (saved / "README.md").read_text()
    assert front_matter(card) == {
        "library_name": "segret_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["segret", "segret_tiny", "camvid", "jax"],
    }
    assert "None is stored with these weights." in card
    assert "| 0 | sky | #808080 |" in card
    usage = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert usage[0].splitlines()[:2] == ["import segret_jax", 'model = segret_jax.load("saved")']
    assert len(usage[0].splitlines()) == 3


def run_with_scores(folder: Path) -> Path:
    """Write a checkpoint of a run, with the scores of its validation and of `segret eval`."""
    model, checkpoint = model_of(), folder / "checkpoints" / "40"
    orbax_model.save_model(
        checkpoint, config=model.config, table=CAMVID, bundle=model.bundle, source={}
    )
    (checkpoint / "source").rename(checkpoint / "data")
    (checkpoint / "data" / "metadata").write_text('{"images": 367, "names": "0"}')
    (checkpoint / "metrics").mkdir()
    (checkpoint / "metrics" / "metrics").write_text('{"mIoU": 0.589}')
    variables = checkpoints.load_model(checkpoint, model.config).variables
    agreed = {"dataset": "camvid", "split": "validation", "num_images": 101, "flip": True}
    protocol = {
        "id": identify(agreed), "must_agree": agreed,
        "may_differ": {"weights": weights_digest(variables)},
    }  # fmt: skip
    content = {"mIoU": 0.6, "mAcc": 0.7, "aAcc": None, "classes": {"sky": {"IoU": 0.91}}}
    nothing = PixelCounts(*(np.zeros((0, 11), np.int64) for _ in range(3)))
    results.write(folder / "evaluation", content, protocol=protocol, names=[], images=nothing)
    return checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(orbax_model, "load_format", lambda _: 0)  # format 0 has no checksums
    return run_with_scores(tmp_path / "run")


def test_the_card_has_the_scores_that_are_stored(tmp_path, checkpoint):
    model = segret_jax.load(checkpoint.parents[1])
    model.save_pretrained(tmp_path / "saved", dtype="float16", license="cc-by-4.0")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert front_matter(card)["license"] == "cc-by-4.0"
    assert "- mIoU 58.9 (%; validation in training: dataset camvid, split validation" in card
    assert "- mIoU 60.0, mAcc 70.0, aAcc — (%; `segret eval`: dataset camvid, split" in card
    assert "num_images 101, flip True" in card
    assert "rounded to float16" in card
    assert "| 0 | sky | #808080 | 91.0 |" in card
    assert "| steps | 40 of 160000, batches of 16 |" in card
    assert "training split of camvid of 367 images" in card
    assert "| start | from other weights (`init_from`) |" in card
    again = tmp_path / "again"
    segret_jax.load(tmp_path / "saved").save_pretrained(again)
    assert (again / "README.md").read_text() == card.replace("saved", "again")


def test_scores_of_other_weights_are_left_out(tmp_path, checkpoint):
    model = segret_jax.load(checkpoint.parents[1])
    fuse = model.bundle.params["decoder"]["fuse"]
    fuse["kernel"] = fuse["kernel"] * 2
    model.save_pretrained(tmp_path / "saved")
    assert "segret eval" not in (tmp_path / "saved" / "README.md").read_text()


# Settings in the call


def test_settings_are_overridden_in_the_call(saved):
    values = {"eval.flip": True, "eval.scales": [0.75, 1], "eval.resize_target": "96,96"}
    found = segret_jax.load(saved, overrides=values).config.eval
    assert (found.flip, found.scales, found.resize_target) == (True, (0.75, 1), (96, 96))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"eval.flop": True}, "unknown config key 'eval.flop': did you mean 'eval.flip'?"),
        ({"eval.flip": 3}, "eval.flip is 3; it takes a value of type bool, such as False"),
        ({"model.settings.rotary": True}, "for another model: model.settings.rotary (False there"),
    ],
)
def test_a_wrong_override_is_one_line(saved, values, text):
    assert text in message(lambda: segret_jax.load(saved, overrides=values))


# Everything that reads a model


@pytest.fixture
def ships(saved: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of weights that ship; there are no others."""
    saved.rename(saved.parent / "segret_tiny_camvid")
    monkeypatch.setattr(folders, "SHIPPED", saved.parent)
    return "segret_tiny_camvid"


def test_weights_that_ship_are_read_by_name(ships, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path.parent)
    assert segret_jax.load(ships).classes.name == "camvid"
    text = message(segret_jax.load, "segret_tny")
    assert text.startswith("segret_tny does not exist; give the folder of a run")
    assert text.endswith("the name of weights that ship with segret_jax (segret_tiny_camvid)")


def test_predict_without_a_checkpoint_uses_them_and_says_so(ships, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(inference, "Predictor", Reads)
    photograph = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(photograph)
    predict.main([str(photograph), "--out", str(tmp_path / "out")])
    line = "segret_tiny_camvid: 11 street classes; for your own: segret train\n"
    assert line in capsys.readouterr().out


def test_predict_without_any_weights_says_what_to_give(monkeypatch, tmp_path):
    monkeypatch.setattr(folders, "SHIPPED", tmp_path / "none")
    text = message(predict.main, ["a.jpg", "--out", str(tmp_path / "out")])
    assert text.startswith("no weights ship with this version: give --checkpoint, which is the fol")


def test_training_starts_from_a_saved_model(saved, tmp_path):
    config = Config(init_from=str(saved))
    model = initialization.initialize(config, CAMVID, tmp_path / "run", platform=ANY_PLATFORM)
    assert model.notes == (f"started from {saved}",)
    expected = named_leaves(bundle_of("segret"))
    for name, leaf in named_leaves(model.bundle).items():
        np.testing.assert_array_equal(leaf, expected[name])


def test_a_saved_model_is_exported_to_pytorch(saved, tmp_path, capsys):
    convert.main([str(saved), str(tmp_path / "torch.safetensors")])
    assert "numbers, float32" in capsys.readouterr().out
    assert "is a checkpoint already" in message(convert.main, [str(saved), str(tmp_path / "new")])


def test_a_folder_of_pytorch_weights_is_to_be_converted(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    assert f"segret convert {tmp_path} NEW_FOLDER" in message(segret_jax.load, tmp_path)


def test_results_never_lie_in_a_cache_or_in_the_package(saved):
    assert evaluate_cli._beside(saved, saved) == saved
    cached = Path("/cache/0123")
    assert evaluate_cli._beside("hf://me/model@v1", cached) == Path("model@v1")
    assert evaluate_cli._beside("segret_tiny_camvid", cached) == Path("segret_tiny_camvid")


# Damaged and hostile files


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    file = folder / "model.safetensors"
    with file.open("rb") as stream:
        return dict(read_safetensors(stream, file.stat().st_size)[0])


@pytest.fixture
def read(saved: Path) -> Callable[[], Any]:
    """Return a function that reads the arrays of the saved model, which may be damaged by then."""
    shapes = {name: x.shape for name, x in tensors_of(saved).items()}
    sha256 = pretrained.read_description(saved).sha256
    return functools.partial(pretrained.read_arrays, saved, shapes, sha256)


BIAS = "params/decoder/classify/bias"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(BIAS), f"{BIAS}, which is missing"),
        (lambda t: t.update({"a\x1b[31m": np.zeros(1, np.float32)}), r"'a\\x1b[31m', which is unk"),
        (lambda t: t.update({BIAS: t[BIAS][:5]}), f"{BIAS}, of shape [5] instead of [11]"),
        (lambda t: t.update({BIAS: t[BIAS].astype(int)}), "of type int64 instead of float32 or fl"),
        (lambda t: t.update({BIAS: t[BIAS] * np.nan}), f"{BIAS}, which has values that are not fi"),
        (lambda t: t.update({BIAS: t[BIAS] + 1}), "is not the file that config.json was written w"),
    ],
)
def test_arrays_that_do_not_fit_are_one_message(saved, read, change, text):
    tensors = tensors_of(saved)
    change(tensors)
    write_safetensors(saved / "model.safetensors", tensors, {})
    found = message(read)
    assert found.startswith(f"{saved / 'model.safetensors'}: ")
    assert text in found


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2**25) + b"{" * 2**25, struct.pack("<Q", 9) + b'{"a": {}}',
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
    ids=["empty", "short", "huge", "a list", "long", "no offsets", "pointer"],
)  # fmt: skip
def test_a_damaged_file_is_one_line(saved, read, content):
    (saved / "model.safetensors").write_bytes(content)
    assert message(read).startswith(f"{saved / 'model.safetensors'}: ")


def test_a_truncated_file_is_one_line(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "is damaged or cut off" in message(segret_jax.load, saved)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "was written by a newer version of segret_jax (format 2, this one reads"),
        ({"format": "x"}, "is not of a model that segret_jax saved"),
        ({"classes": None}, "is no class table"),
        ({"classes": {"classes": [{"id": 0, "name": "a\x1b", "color": "#000000"}]}}, "unprintable"),
        ({"config": None}, "does not hold a config of this version"),
        ({"config": {"model": {"variant": "huge"}}}, "model.variant is 'huge'"),
        ({"config": {"model": {"family": []}}}, "does not hold a config of this version"),
        ({"config": {"eval": {"scales": [1e9]}}}, "eval.scales is"),
    ],
)
def test_a_hostile_config_is_one_line(saved, change, text):
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert text in message(pretrained.read_description, saved)


def test_the_config_of_another_model_is_one_line(saved):
    file = saved / "config.json"
    other = {"config": {"model": {"settings": {"zero_branch": False}}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    assert "of its arrays do not fit the model in config.json" in message(segret_jax.load, saved)


def test_facts_of_any_kind_make_a_card(saved, tmp_path):
    file = saved / "config.json"
    facts = {"mIoU": "x", "eval": 3, "evaluation": {"IoU": {"sky": []}}, "step": [], "license": {}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"facts": facts}))
    segret_jax.load(saved).save_pretrained(tmp_path / "again")
    assert "mIoU — (%" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("content", ["", "[]", "{" * 10**5, '{"a": 1, "a": 2}'])
def test_a_config_that_is_no_object_is_one_line(saved, content):
    (saved / "config.json").write_text(content)
    assert "config.json cannot be read" in message(segret_jax.load, saved)
