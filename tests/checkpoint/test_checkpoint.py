"""Saving and restoring: bit for bit, the right ones kept, and a disk that is full."""

import contextlib
import dataclasses
import functools
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from segret_jax.checkpoint.folders import find
from segret_jax.checkpoint.manager import Checkpoints
from segret_jax.checkpoint.model import load_config, load_model, load_table
from segret_jax.checkpoint.state import TrainState, new_state
from segret_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from segret_jax.data.pipeline import class_table
from segret_jax.data.synthetic import SyntheticSource
from segret_jax.errors import InputError
from segret_jax.models.factory import build
from segret_jax.models.segret import FAMILY
from segret_jax.models.segret.variants import VARIANTS, Variant
from segret_jax.training.optimizer import make_optimizer
from tests.training.test_step import named

IMAGES = SyntheticSource(seed=0, num_images=3, size=(32, 32))


@functools.cache
def first_state(variant: Variant) -> TrainState:
    """The first state of the small model, which takes half a second to build."""
    assert variant == VARIANTS["tiny"]
    _, params, batch_stats = build(ModelConfig(), class_table(DataConfig()).num_classes, seed=0)
    return new_state(params, batch_stats, make_optimizer(OptimConfig(), steps=10, family=FAMILY))


def state_of(step: int) -> TrainState:
    """A state whose every leaf is its own noise, different at every step."""
    rng = np.random.default_rng(step)
    leaves, treedef = jax.tree.flatten(first_state(VARIANTS["tiny"]))
    random = [np.asarray(10 * rng.standard_normal(x.shape)).astype(x.dtype) for x in leaves]
    random[:3] = np.int32(step), np.int32(0), np.int32(-1)
    return jax.tree.unflatten(treedef, [jax.numpy.asarray(x) for x in random])


def saved(checkpoints: Checkpoints, state: TrainState, mean_iou: float | None = None) -> bool:
    """Save, wait until that is done, and note the score."""
    checkpoints.save(state)
    if mean_iou is not None:
        checkpoints.add_score(int(state.step), mean_iou)
    return checkpoints.finish()


@pytest.fixture
def checkpoints(mini, tmp_path: Path) -> Iterator[Checkpoints]:
    config = Config()
    config.train.keep_checkpoints = 2
    checkpoints = Checkpoints(tmp_path, config, class_table(config.data), IMAGES)
    yield checkpoints
    checkpoints.close()


def steps_in(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def assert_equal(a: TrainState, b: TrainState) -> None:
    ours, theirs = named(a), named(b)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name, strict=True)


def test_restore_returns_every_leaf_bit_for_bit(checkpoints):
    for step in (3, 7):
        assert saved(checkpoints, state_of(step))
    restored = checkpoints.restore_latest(state_of(0))
    assert checkpoints.latest_step == 7
    assert_equal(restored, state_of(7))
    assert load_config(checkpoints.folder / "7") == checkpoints.config


def test_the_newest_and_the_best_are_kept(checkpoints, tmp_path):
    scores = (0.1, 0.9, 0.2, None, 0.3, 0.5)
    expected = (["1"], ["1", "2"], ["2", "3"], ["2", "3", "4"], ["2", "4", "5"], ["2", "5", "6"])
    for step, (score, kept) in enumerate(zip(scores, expected, strict=True), start=1):
        saved(checkpoints, state_of(step), mean_iou=score)
        assert steps_in(checkpoints) == kept
    assert find(checkpoints.folder.parent) == checkpoints.folder / "2"
    checkpoints.close()
    assert find(tmp_path) == checkpoints.folder / "2"
    assert find(checkpoints.folder / "5") == checkpoints.folder / "5"
    # The scores are on the disk.
    again = Checkpoints(tmp_path, checkpoints.config, checkpoints.table, IMAGES)
    saved(again, state_of(7), mean_iou=0.6)
    assert steps_in(again) == ["2", "6", "7"]
    again.close()


def test_without_scores_the_newest_is_the_best(checkpoints, tmp_path):
    for step in (1, 2, 3):
        saved(checkpoints, state_of(step))
    assert steps_in(checkpoints) == ["2", "3"]
    assert find(tmp_path) == checkpoints.folder / "3"


def test_a_score_of_nan_is_never_the_best(checkpoints):
    """It is that of a validation set without any label."""
    for step, score in enumerate((0.3, float("nan"), 0.2, 0.1), start=1):
        saved(checkpoints, state_of(step), mean_iou=score)
    assert find(checkpoints.folder.parent) == checkpoints.folder / "1"
    assert steps_in(checkpoints) == ["1", "3", "4"]


def test_a_model_is_loaded_without_its_optimizer(checkpoints):
    saved(checkpoints, state_of(4))
    assert load_table(checkpoints.folder / "4").to_dict() == checkpoints.table.to_dict()
    _, params, batch_stats = load_model(checkpoints.folder / "4", checkpoints.config)
    ours, theirs = named((params, batch_stats)), state_of(4)
    for name, leaf in named((theirs.params, theirs.batch_stats)).items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name, strict=True)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        find(tmp_path)


def in_a_process_of_its_own(
    function: Callable[[Path], None], mini: Variant, workdir: Path, *, module: str = __name__
) -> str:
    """Call it and return what it logs. After a fault Orbax leaves threads and coroutines behind,
    whose complaints would reach any later test."""
    code = (
        "from pathlib import Path; from segret_jax.models.segret import variants; "
        f"variants.VARIANTS['tiny'] = variants.{mini!r}; import {module} as tests; "
        f"tests.{function.__name__}(Path({str(workdir)!r}))"
    )
    command, root = [sys.executable, "-c", code], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def load_another(workdir: Path) -> None:
    checkpoints = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
    saved(checkpoints, state_of(4))
    for message, options in (
        (
            r"4 are for another model: model\.variant .*small here",
            {"variant": "small"},
        ),
        ("4 does not hold rmt_tiny with 8 classes: ", {"task": "classification"}),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_model(checkpoints.folder / "4", Config(model=ModelConfig(**options)))
        assert len(str(error.value).splitlines()) == 1


def test_another_model_is_refused(mini, tmp_path):
    in_a_process_of_its_own(load_another, mini, tmp_path)


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let larger writes of this process fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_the_disk(workdir: Path) -> None:
    checkpoints = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
    assert saved(checkpoints, state_of(1), mean_iou=0.5)
    for room in (100, 20_000, 100):
        with files_of_at_most(room):
            assert not saved(checkpoints, state_of(2), mean_iou=0.6)
        assert steps_in(checkpoints) == ["1"]  # nothing partial
        assert checkpoints.latest_step == 1
        assert find(workdir) == checkpoints.folder / "1"
        assert_equal(checkpoints.restore_latest(state_of(0)), state_of(1))
    assert saved(checkpoints, state_of(2), mean_iou=0.6)  # now there is room
    assert find(workdir) == checkpoints.folder / "2"
    assert_equal(checkpoints.restore_latest(state_of(0)), state_of(2))


def test_a_full_disk_harms_no_earlier_checkpoint_and_no_later_one(mini, tmp_path):
    log = in_a_process_of_its_own(fill_the_disk, mini, tmp_path)
    ours = [line for line in log.splitlines() if "checkpoint of step 2 was not saved" in line]
    assert len(ours) == 3  # one line each
    for line in ours:
        assert str(tmp_path / "checkpoints") in line
        assert "File too large" in line
        assert "free some space" in line
        assert len(line) < 400


def test_a_disk_that_is_seen_to_be_full_is_not_written_to(checkpoints, monkeypatch, caplog):
    usage = shutil.disk_usage(checkpoints.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_000))
    monkeypatch.setattr(checkpoints._manager, "save", None)
    assert not saved(checkpoints, state_of(2))
    assert "checkpoint of step 2 was not saved" in caplog.text
    assert re.search(r"\(it takes [\d.]+ MB, 0\.0 MB are free\)", caplog.text)


def test_a_score_that_comes_later_still_counts(checkpoints, tmp_path):
    """The evaluation of a step that was saved on Ctrl-C is made when the run continues."""
    saved(checkpoints, state_of(1), mean_iou=0.5)
    saved(checkpoints, state_of(2))
    assert find(tmp_path) == checkpoints.folder / "1"
    saved(checkpoints, state_of(2), mean_iou=0.8)
    assert find(tmp_path) == checkpoints.folder / "2"
    for step in (3, 4):
        saved(checkpoints, state_of(step), mean_iou=0.1)
    assert steps_in(checkpoints) == ["2", "3", "4"]


def test_a_saved_state_is_the_one_before_a_bad_step(checkpoints):
    bad = dataclasses.replace(state_of(5), bad_step=jnp.int32(5))
    saved(checkpoints, bad)
    assert int(checkpoints.restore_latest(state_of(0)).bad_step) == -1


def arrays_in(folder: Path) -> list[Path]:
    """The files of arrays. A part of each may have been superseded while it was written: which
    part is a matter of time, and nobody misses it. So a fault has to be everywhere to be one."""
    return [path for path in folder.rglob("d/*") if path.is_file()]


def flip_bits(folder: Path) -> None:
    for file in arrays_in(folder):
        content = bytearray(file.read_bytes())
        content[::256] = bytes(byte ^ 4 for byte in content[::256])
        file.write_bytes(content)


def truncate(folder: Path) -> None:
    for file in arrays_in(folder):
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)


def change_sums(folder: Path) -> None:
    """As if an array of each item had come back whole but changed."""
    file = folder / "sums" / "metadata"
    sums = json.loads(file.read_text())
    for item in (sums["model"], sums["training"]):
        item[min(item)] += 1
    file.write_text(json.dumps(sums))


def remove_model(folder: Path) -> None:
    shutil.rmtree(folder / "model")


def remove_sums(folder: Path) -> None:
    shutil.rmtree(folder / "sums")


def use_the_one_before_changed_ones(workdir: Path) -> None:
    _damage_and_use_the_one_before(workdir, flip_bits, truncate, change_sums)


def use_the_one_before_incomplete_ones(workdir: Path) -> None:
    _damage_and_use_the_one_before(workdir, remove_model, remove_sums)


def _damage_and_use_the_one_before(workdir: Path, *damages: Callable[[Path], None]) -> None:
    checkpoints = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
    for damage in damages:
        for step in (1, 2):
            assert saved(checkpoints, state_of(step))
        damage(checkpoints.folder / "2")
        again = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
        assert_equal(again.restore_latest(state_of(0)), state_of(1))
        assert again.latest_step == 1
        assert list(workdir.glob("damaged_checkpoint_2*"))
        assert saved(again, state_of(2))  # the run comes to that step once more
        assert_equal(again.restore_latest(state_of(0)), state_of(2))
        again.close()
        shutil.rmtree(checkpoints.folder)
        checkpoints = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
    checkpoints.close()


def use_none(workdir: Path) -> None:
    checkpoints = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
    for step in (1, 2):
        assert saved(checkpoints, state_of(step))
        flip_bits(checkpoints.folder / str(step))
    for _ in range(2):  # and nothing was changed: the second start is no new run
        with pytest.raises(
            InputError, match=r"no checkpoint in .* can be read .*nothing was moved"
        ):
            checkpoints.restore_latest(state_of(0))
    checkpoints.close()


@pytest.mark.parametrize(
    ("use", "faults"),
    [
        (use_the_one_before_changed_ones, ("", "", "is not what was saved")),
        pytest.param(
            use_the_one_before_incomplete_ones, ("is missing", "is missing"),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(mini, tmp_path, use, faults):
    log = in_a_process_of_its_own(use, mini, tmp_path)
    lines = [line for line in log.splitlines() if "checkpoints/2 is damaged" in line]
    for line, fault in zip(lines, faults, strict=True):
        assert "the checkpoint before it is used" in line
        assert fault in line


def test_where_all_are_damaged_nothing_is_moved(mini, tmp_path):
    in_a_process_of_its_own(use_none, mini, tmp_path)


def test_machine_errors_do_not_move_a_checkpoint(checkpoints, monkeypatch):
    saved(checkpoints, state_of(1))
    for error in (MemoryError(), PermissionError(13, "denied"), OSError(5, "input/output error")):

        def fail(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(ocp.StandardCheckpointer, "restore", fail)
        with pytest.raises(type(error)):
            checkpoints.restore_latest(state_of(0))
    assert steps_in(checkpoints) == ["1"]


def load_damaged(workdir: Path) -> None:
    checkpoints = Checkpoints(workdir, Config(), class_table(DataConfig()), IMAGES)
    faults = {flip_bits: r"\w+Error: ", change_sums: "is not what was saved"}
    for step, (damage, fault) in enumerate(faults.items(), start=1):
        saved(checkpoints, state_of(step))
        folder = checkpoints.folder / str(step)
        load_model(folder, checkpoints.config)
        damage(folder)
        with pytest.raises(InputError, match=rf"/{step} cannot be loaded \(.*{fault}") as error:
            load_model(folder, checkpoints.config)
        assert len(str(error.value).splitlines()) == 1


def test_the_model_of_a_damaged_checkpoint_is_not_loaded(mini, tmp_path):
    in_a_process_of_its_own(load_damaged, mini, tmp_path)


def test_other_data_or_classes_are_refused(checkpoints, tmp_path):
    saved(checkpoints, state_of(1))
    more = SyntheticSource(seed=0, num_images=4, size=(32, 32))
    other = Checkpoints(tmp_path, checkpoints.config, checkpoints.table, more)
    with pytest.raises(InputError, match=r"trained on 3 images.* data\.root now holds 4"):
        other.restore_latest(state_of(0))
    other.close()


def test_what_is_saved_is_the_state_of_that_moment(checkpoints):
    """The next step takes the buffers while the writers are still at work."""
    take = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0, x), donate_argnums=0)
    state, expected = state_of(1), state_of(1)
    checkpoints.save(state)
    jax.block_until_ready(take(state))
    assert checkpoints.finish()
    assert_equal(checkpoints.restore_latest(state_of(0)), expected)
