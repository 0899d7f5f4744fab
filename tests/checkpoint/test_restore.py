"""What is wrong with a checkpoint is told apart: its version, its structure, its files."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from segret_jax.checkpoint.folders import find
from segret_jax.checkpoint.manager import Checkpoints
from segret_jax.checkpoint.model import load_config, load_model
from segret_jax.config import Config, DataConfig
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.models.segret import variants
from tests.checkpoint.test_checkpoint import IMAGES, assert_equal, saved, state_of, steps_in
from tests.conftest import MINI


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two checkpoints, to copy."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(variants.VARIANTS, "tiny", MINI)
        checkpoints = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
        for step in (1, 2):
            assert saved(checkpoints, state_of(step))
        checkpoints.close()
    return workdir


@pytest.fixture
def checkpoints(mini, two_saved: Path, tmp_path: Path) -> Iterator[Checkpoints]:
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    checkpoints = Checkpoints(tmp_path, Config(), class_table(DataConfig()), IMAGES)
    yield checkpoints
    checkpoints.close()


def failing(steps: tuple[int, ...], error: Exception) -> Callable:
    """Return a `restore` that fails for the checkpoints of some steps."""
    original = ocp.StandardCheckpointer.restore

    def restore(checkpointer: Any, folder: Path, *args: Any, **kwargs: Any) -> Any:
        if int(folder.parent.name) in steps:
            raise error
        return original(checkpointer, folder, *args, **kwargs)

    return restore


def test_a_checkpoint_of_a_newer_version_is_refused_and_left_where_it_is(checkpoints, tmp_path):
    newest = checkpoints.folder / "2"
    (newest / "format" / "metadata").write_text(json.dumps({"format": 3, "more": "to come"}))
    (newest / "sums" / "metadata").write_text("of another form")
    message = r"checkpoints/2 was written by a newer version .*format 3.*: update segret_jax"
    for read in (
        lambda: checkpoints.restore_latest(state_of(0)),
        lambda: load_model(newest, checkpoints.config),
        lambda: load_config(newest),
    ):
        with pytest.raises(InputError, match=message) as error:
            read()
        assert len(str(error.value).splitlines()) == 1
    assert steps_in(checkpoints) == ["1", "2"]
    assert not list(tmp_path.glob("damaged*"))


def test_an_unknown_fault_of_one_checkpoint_is_that_checkpoint_s(
    checkpoints, tmp_path, monkeypatch, caplog
):
    error = RuntimeError("unheard of\nsecond line")
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", failing((2,), error))
    assert_equal(checkpoints.restore_latest(state_of(0)), state_of(1))
    assert steps_in(checkpoints) == ["1"]
    assert (tmp_path / "damaged_checkpoint_2").is_dir()
    assert "checkpoints/2 is damaged (RuntimeError: unheard of): moved to" in caplog.text


@pytest.mark.parametrize("error", [TypeError("of a new Orbax"), AttributeError("gone")])
def test_an_unknown_fault_of_all_checkpoints_moves_none_and_is_shown(
    checkpoints, tmp_path, monkeypatch, error
):
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", failing((1, 2), error))
    fault = f"{type(error).__name__}: {error}"
    with pytest.raises(InputError, match=r"nothing was moved\. Install the versions") as told:
        checkpoints.restore_latest(state_of(0))
    assert f"(2: {fault}; 1: {fault})" in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    assert steps_in(checkpoints) == ["1", "2"]
    assert not list(tmp_path.glob("damaged*"))


def test_another_structure_is_reported_and_not_as_damage(checkpoints, tmp_path):
    """As after a change of the code: here the state has an average of the weights beside them."""
    state = state_of(0)
    like = dataclasses.replace(state, ema=state.model)
    with pytest.raises(InputError, match="checkpoints/2 holds another training state") as error:
        checkpoints.restore_latest(like)
    first = "the first is training/batch_stats/decoder/fuse_norm/mean (missing there, (16,) here)"
    assert first in str(error.value)
    assert "--config.init_from=" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert steps_in(checkpoints) == ["1", "2"]
    assert not list(tmp_path.glob("damaged*"))


@pytest.mark.parametrize("item", ["classes", "data", "format", "sums"])
def test_a_missing_file_is_named_and_the_one_before_is_used(checkpoints, tmp_path, caplog, item):
    shutil.rmtree(checkpoints.folder / "2" / item)
    assert_equal(checkpoints.restore_latest(state_of(0)), state_of(1))
    assert re.search(rf"2/{item}(/metadata)? is missing", caplog.text)
    assert steps_in(checkpoints) == ["1"]


@pytest.mark.parametrize("item", ["model", "sums"])
def test_a_model_whose_file_is_missing_is_not_loaded(checkpoints, item):
    checkpoint = checkpoints.folder / "2"
    shutil.rmtree(checkpoint / item)
    with pytest.raises(InputError, match=rf"cannot be loaded \(.*{item}.* is missing") as error:
        load_model(checkpoint, checkpoints.config)
    assert len(str(error.value).splitlines()) == 1


def test_a_run_s_folder_and_its_folder_checkpoints_mean_the_same(checkpoints, tmp_path):
    assert find(tmp_path) == find(tmp_path / "checkpoints") == checkpoints.folder / "2"
    (tmp_path / "checkpoints").rename(tmp_path / "weights")  # as a copy may be called
    assert find(tmp_path / "weights") == tmp_path / "weights" / "2"
    (tmp_path / "pictures" / "7").mkdir(parents=True)
    with pytest.raises(InputError, match="no checkpoint in"):
        find(tmp_path / "pictures")
