"""Training that starts from other weights, and the checkpoint that holds them.

From a file of PyTorch to the first step: tests/integration/test_start_from_converted.py.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax import config as configs
from segret_jax.checkpoint import folders, orbax_model
from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint.reading import read_stored_json
from segret_jax.cli import arguments as cli
from segret_jax.config import Config, ModelConfig, TrainConfig
from segret_jax.errors import InputError
from segret_jax.models.factory import build
from segret_jax.models.kernels import ANY_PLATFORM
from segret_jax.training import loop
from segret_jax.training.initialization import InitialModel, initialize
from tests.settings import segret
from tests.weights import flat, random_model, saved_model, table_of

NUM_CLASSES = 5
COMPLETE = {"rotary": True, "ffn_conv": True}
CLASSIFIER = segret(task="classification", token_head=True, **COMPLETE)


@pytest.fixture(autouse=True)
def _small(mini) -> None:
    """Of the variant `tiny`."""


def begin(tmp_path: Path, num_classes: int = NUM_CLASSES, **model: Any) -> InitialModel:
    config = Config(model=segret(**model), init_from=str(tmp_path / "weights"))
    return initialize(config, table_of(num_classes), tmp_path / "run", platform=ANY_PLATFORM)


def tensors(start: Any) -> dict[str, np.ndarray]:
    return flat({"params": start.bundle.params, "batch_stats": start.bundle.batch_stats})


def split_by_source(tmp_path: Path, start: InitialModel, saved: Any, **model: Any) -> set[str]:
    """Assert that each tensor is the saved one, or else the initial one; return the latter."""
    _, params, batch_stats = build(segret(**model), NUM_CLASSES, seed=0)
    initial = flat({"params": params, "batch_stats": batch_stats})
    theirs = flat({"params": saved[1], "batch_stats": saved[2]})
    found, fresh = tensors(start), set()
    assert found.keys() == initial.keys()
    for name, leaf in found.items():
        if name in theirs and np.array_equal(leaf, theirs[name]):
            continue
        np.testing.assert_array_equal(leaf, initial[name], err_msg=name, strict=True)
        fresh.add(name)
    return fresh


def test_note_names_only_left_out_parts_of_the_encoder(tmp_path):
    saved_model(tmp_path / "weights", CLASSIFIER, 1000)
    first, note = begin(tmp_path, rotary=True).notes
    assert re.search(r"weights: \d+ of \d+ tensors; the others are initialized$", first)
    assert "LEFT OUT of that classifier: the FFN's convolutions, so" in note
    assert note.endswith("; --config.model.settings.ffn_conv=true would keep them")
    assert "rotation" not in note


def test_the_same_classes_take_every_tensor(tmp_path):
    saved = saved_model(tmp_path / "weights", ModelConfig(), NUM_CLASSES)
    start = begin(tmp_path)
    assert not split_by_source(tmp_path, start, saved)
    assert start.notes == (f"started from {tmp_path / 'weights'}",)
    config = Config(init_from=str(tmp_path / "weights"))
    other = initialize(
        config, table_of(NUM_CLASSES, name="other"), tmp_path / "run", platform=ANY_PLATFORM
    )
    assert "its classes (made_up) have other names" in other.notes[0]


def test_another_number_of_classes_initializes_the_last_layer(tmp_path):
    saved = saved_model(tmp_path / "weights", ModelConfig(), 7)
    start = begin(tmp_path)
    fresh = split_by_source(tmp_path, start, saved)
    assert fresh == {f"['params']['decoder']['classify']['{name}']" for name in ("kernel", "bias")}
    assert (
        "all but the last layer, which is initialized for 5 classes instead of 7" in start.notes[0]
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            {},
            {"rotary": True},
            "model.settings.rotary (False there, True here). Give --config.model.settings.rotary",
        ),
        (
            COMPLETE,
            {},
            "model.settings.rotary (True there, False here), model.settings.ffn_conv (True there",
        ),
        ({}, {"decay": "post_softmax"}, "model.settings.decay (additive there, post_softmax here)"),
        ({}, {"zero_branch": False}, "model.settings.zero_branch (True there, False here)"),
        ({}, {"variant": "small"}, "model.variant (tiny there, small here)"),
        (
            {"task": "classification"},
            {"rotary": True},
            "model.settings.rotary (False there, True here)",
        ),
    ],
)
def test_another_model_is_refused_with_the_settings_to_change(tmp_path, theirs, ours, message):
    saved_model(tmp_path / "weights", segret(**theirs), NUM_CLASSES)
    with pytest.raises(InputError) as error:
        begin(tmp_path, **ours)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_every_tensor_that_does_not_fit_is_listed(tmp_path):
    saved_model(tmp_path / "weights", ModelConfig(), NUM_CLASSES)
    with pytest.raises(InputError, match=r"init_from: 38 tensors of .* do not fit") as error:
        begin(tmp_path, decoder_channels=24)
    assert "params/decoder/fuse/kernel is (64, 16) there, (96, 24) here; " in str(error.value)
    assert "batch_stats/decoder/fuse_norm/var is (16,) there, (24,) here" in str(error.value)


def test_missing_weights_are_reported_before_a_folder_is_made(tmp_path):
    config = Config(init_from=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"nothing does not exist; give the folder"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the command can be put right


def test_the_command_line_and_the_saved_config_know_the_setting(tmp_path):
    config = cli.apply_overrides(Config(), ["--config.init_from=runs/a", "--config.train.seed=3"])
    assert (config.init_from, config.train.seed) == ("runs/a", 3)
    configs.save(config, tmp_path / "config.json")
    assert configs.load(tmp_path / "config.json") == config
    with pytest.raises(InputError, match="did you mean 'init_from'"):
        cli.apply_overrides(Config(), ["--config.init_form=runs/a"])


def test_a_resumed_run_does_not_read_them(tmp_path):
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    assert begin(tmp_path).notes == ()  # they do not even exist


def test_a_classifier_cannot_be_trained(tmp_path):
    with pytest.raises(InputError, match=r"does not segment.*--config\.init_from=CHECKPOINT"):
        initialize(Config(model=CLASSIFIER), table_of(NUM_CLASSES), tmp_path, platform=ANY_PLATFORM)


def test_a_saved_model_comes_back_with_all_that_was_given(tmp_path):
    folder, model = tmp_path / "new" / "weights", CLASSIFIER
    bundle = random_model(model, 1000)
    config = Config(model=model, train=TrainConfig(seed=7))
    kept = {"decode_head.conv_seg.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    arguments: dict[str, Any] = {
        "config": config, "table": table_of(1000), "bundle": bundle,
        "source": {"sha256": "0f", "dropped": ["a", None]}, "kept": kept,
    }  # fmt: skip
    orbax_model.save_model(folder, **arguments)
    assert folders.find(folder) == folder
    assert checkpoints.load_config(folder) == config
    assert checkpoints.load_table(folder).to_dict() == table_of(1000).to_dict()
    assert read_stored_json(folder / "source") == arguments["source"]
    for ours, theirs in (
        (orbax_model.load_kept(folder), kept),
        (checkpoints.load_model(folder, config)[1:], bundle.variables),
    ):
        ours, theirs = flat(ours), flat(theirs)
        assert ours.keys() == theirs.keys()
        for name, leaf in theirs.items():
            np.testing.assert_array_equal(ours[name], leaf, err_msg=name, strict=True)

    with pytest.raises(InputError, match="exists: choose another folder"):
        orbax_model.save_model(folder, **arguments)
    orbax_model.save_model(tmp_path / "bare", **arguments | {"kept": None})
    assert orbax_model.load_kept(tmp_path / "bare") == {}


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        (tmp_path / "weights.orbax-checkpoint-tmp-1" / "model").mkdir(parents=True)
        raise ValueError("... Error writing: File too large [os_error_code='27']")

    monkeypatch.setattr(orbax_model.ocp.Checkpointer, "save", refuse)
    with pytest.raises(InputError, match=r"weights was not written \(File too large\)"):
        saved_model(tmp_path / "weights", ModelConfig(), NUM_CLASSES)
    assert not list(tmp_path.iterdir())
