"""Saving and restoring: bit for bit, the right ones kept, and a disk that is full."""

import contextlib
import gc
import logging
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from segret_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.training.checkpoint import Checkpoints, find, load_config, load_model
from segret_jax.training.optim import make_optimizer
from segret_jax.training.state import TrainState, build, new_state
from tests.training.test_step import named


@pytest.fixture
def _orbax_is_noisy() -> Iterator[None]:
    yield
    gc.collect()  # the coroutines that it abandons on a fault complain when they are collected


def quiet_orbax(test: Callable) -> Callable:
    """Ignore what Orbax's abandoned threads and coroutines say after the fault was handled."""
    for warning in ("PytestUnraisableExceptionWarning", "PytestUnhandledThreadExceptionWarning"):
        test = pytest.mark.filterwarnings(f"ignore::pytest.{warning}")(test)
    return pytest.mark.usefixtures("_orbax_is_noisy")(test)


def state_of(step: int) -> TrainState:
    """A state whose every leaf is its own noise, different at every step."""
    _, params, batch_stats = build(ModelConfig(), class_table(DataConfig()).num_classes, seed=0)
    state = new_state(params, batch_stats, make_optimizer(OptimConfig(), params, steps=10))
    rng = np.random.default_rng(step)
    leaves, treedef = jax.tree.flatten(state)
    random = [np.asarray(10 * rng.standard_normal(x.shape)).astype(x.dtype) for x in leaves]
    random[0], random[1] = np.int32(step), np.int32(-1)
    return jax.tree.unflatten(treedef, [jax.numpy.asarray(x) for x in random])


@pytest.fixture
def checkpoints(mini, tmp_path: Path) -> Iterator[Checkpoints]:
    config = Config()
    config.train.keep_checkpoints = 2
    checkpoints = Checkpoints(tmp_path, config)
    yield checkpoints
    checkpoints.close()


def steps_in(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def assert_equal(a: TrainState, b: TrainState) -> None:
    ours, theirs = named(a), named(b)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name, strict=True)


def test_every_leaf_comes_back_bit_for_bit(checkpoints):
    for step in (3, 7):
        assert checkpoints.save(state_of(step))
    restored = checkpoints.restore_latest(state_of(0))
    assert checkpoints.latest_step == 7
    assert_equal(restored, state_of(7))
    assert load_config(checkpoints.folder / "7") == checkpoints.config


def test_the_newest_and_the_best_are_kept(checkpoints, tmp_path):
    scores = (0.1, 0.9, 0.2, None, 0.3, 0.5)
    expected = (["1"], ["1", "2"], ["2", "3"], ["2", "3", "4"], ["2", "4", "5"], ["2", "5", "6"])
    for step, (score, kept) in enumerate(zip(scores, expected, strict=True), start=1):
        checkpoints.save(state_of(step), mean_iou=score)
        assert steps_in(checkpoints) == kept
    assert find(checkpoints.folder.parent) == checkpoints.folder / "2"
    checkpoints.close()
    assert find(tmp_path) == checkpoints.folder / "2"
    assert find(checkpoints.folder / "5") == checkpoints.folder / "5"
    again = Checkpoints(tmp_path, checkpoints.config)  # the scores are on the disk
    again.save(state_of(7), mean_iou=0.6)
    assert steps_in(again) == ["2", "6", "7"]
    again.close()


def test_without_scores_the_newest_is_the_best(checkpoints, tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(state_of(step))
    assert steps_in(checkpoints) == ["2", "3"]
    assert find(tmp_path) == checkpoints.folder / "3"


def test_a_score_of_nan_is_never_the_best(checkpoints):
    """It is that of a validation set without any label."""
    for step, score in enumerate((0.3, float("nan"), 0.2, 0.1), start=1):
        checkpoints.save(state_of(step), mean_iou=score)
    assert find(checkpoints.folder.parent) == checkpoints.folder / "1"
    assert steps_in(checkpoints) == ["1", "3", "4"]


def test_a_model_is_loaded_without_its_optimizer(checkpoints):
    checkpoints.save(state_of(4))
    _, params, batch_stats = load_model(checkpoints.folder / "4", checkpoints.config)
    ours, theirs = named((params, batch_stats)), state_of(4)
    for name, leaf in named((theirs.params, theirs.batch_stats)).items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name, strict=True)


@quiet_orbax
def test_a_model_of_other_classes_is_refused(checkpoints):
    checkpoints.save(state_of(4))
    other = Config(data=DataConfig(dataset="ade20k"))
    with pytest.raises(InputError, match=r"4 does not hold segret_tiny with 150 classes") as error:
        load_model(checkpoints.folder / "4", other)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        find(tmp_path)


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let larger writes of this process fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@quiet_orbax
@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_harms_no_earlier_checkpoint_and_no_later_one(checkpoints, caplog, room):
    assert checkpoints.save(state_of(1), mean_iou=0.5)
    with files_of_at_most(room), caplog.at_level(logging.WARNING):
        assert not checkpoints.save(state_of(2), mean_iou=0.6)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR and r.name == "root"]
    message = record.getMessage()
    assert message.startswith("checkpoint of step 2 was not saved")
    assert str(checkpoints.folder) in message
    assert "File too large" in message
    assert len(message) < 400
    assert steps_in(checkpoints) == ["1"]
    assert checkpoints.latest_step == 1
    assert_equal(checkpoints.restore_latest(state_of(0)), state_of(1))
    assert find(checkpoints.folder.parent) == checkpoints.folder / "1"

    assert checkpoints.save(state_of(2), mean_iou=0.6)  # now there is room
    assert_equal(checkpoints.restore_latest(state_of(0)), state_of(2))
    assert find(checkpoints.folder.parent) == checkpoints.folder / "2"
