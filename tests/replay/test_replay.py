"""A captured step is made again, and the layer that breaks it is named."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.checkpoint.state import TrainState, new_state
from segret_jax.cli import replay
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.models.factory import build
from segret_jax.models.retention import blocked as blocked_retention
from segret_jax.models.segret import FAMILY
from segret_jax.parallel.mesh import MeshConfig, make_mesh
from segret_jax.parallel.sharding import shard_batch, shard_state
from segret_jax.training import capture
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import make_train_step
from tests.conftest import slow

CONFIG = Config()
TABLE: ClassTable = class_table(CONFIG.data)


@pytest.fixture
def state(mini) -> TrainState:
    _, params, batch_stats = build(CONFIG.model, TABLE.num_classes, seed=0)
    optimizer = make_optimizer(CONFIG.optim, CONFIG.train.steps, FAMILY)
    return new_state(params, batch_stats, optimizer)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((4, 32, 32, 3), np.float32),
        "label": rng.integers(0, 8, (4, 32, 32), np.uint8),
        "index": np.arange(4, dtype=np.int32),
    }


def replayed(folder: Path, state: TrainState, batch: dict[str, Any], *overrides: str) -> int:
    capture.write(folder, state=state, config=CONFIG, table=TABLE, batch=batch)
    with pytest.raises(SystemExit) as exited:
        replay.main([str(folder), *overrides])
    return exited.value.code


def changed(state: TrainState, *path: Any, factor: float) -> TrainState:
    """Return the state with one parameter multiplied."""
    params = jax.tree.map(lambda x: x, state.params)
    parent = params
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = parent[path[-1]] * factor
    return dataclasses.replace(state, params=params)


def test_a_pixel_that_is_not_finite_is_named(state, tmp_path, capsys):
    spoiled = batch()
    spoiled["image"][1, 2, 3, 0] = np.inf
    assert replayed(tmp_path / "nonfinite_000000", state, spoiled) == 1
    printed = capsys.readouterr().out
    assert "not finite before the step: batch: image" in printed
    assert "1. encoder/stem (forward): conv_general_dilated" in printed


@pytest.mark.parametrize("accumulate", [1, *slow(2)])
def test_replayed_loss_equals_that_of_the_step(state, tmp_path, capsys, accumulate):
    override = f"--config.train.accumulate={accumulate}"
    assert replayed(tmp_path, state, batch(), override) == 0
    printed = capsys.readouterr().out
    config = dataclasses.replace(CONFIG.train, accumulate=accumulate)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graph, _, _ = build(CONFIG.model, TABLE.num_classes, seed=0)
    step = make_train_step(graph, make_optimizer(CONFIG.optim, 10, FAMILY), config, mesh)
    _, metrics = step(shard_state(state, mesh), shard_batch(batch(), mesh, accumulate))
    loss, norm = map(float, re.findall(r"float32: loss (\S+), gradient norm (\S+)", printed)[0])
    assert loss == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert norm == pytest.approx(float(metrics["gradient_norm"]), rel=1e-3)


@pytest.mark.slow
def test_the_layer_that_overflows_is_named(state, tmp_path, capsys):
    ffn = ("encoder", "stages", 2, 0, "ffn")
    huge = changed(state, *ffn, "fc1", "kernel", factor=1e25)
    huge = changed(huge, *ffn, "fc2", "kernel", factor=1e25)
    assert replayed(tmp_path, huge, batch()) == 1
    printed = capsys.readouterr().out
    assert printed.count(". encoder/stage3/block0/ffn (forward): dot_general gives") == 2
    assert "segret_jax/models/blocks.py:" in printed


@pytest.mark.slow
def test_a_fault_inside_the_blocks_of_retention_is_named(state, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(blocked_retention, "CACHED_SCORES", 64)
    blocked_retention._by_blocks.clear_cache()
    huge = state
    for layer in ("q", "k"):
        path = ("encoder", "stages", 2, 0, "retention", layer, "kernel")
        huge = changed(huge, *path, factor=1e25)
    assert replayed(tmp_path, huge, batch()) == 1
    printed = capsys.readouterr().out
    assert re.search(r"encoder/stage3/block0/retention\S* \(forward\): dot_general gives", printed)
    assert "segret_jax/models/retention/blocked.py:" in printed
    blocked_retention._by_blocks.clear_cache()


def test_folder_of_a_run_gives_its_newest_step(state, tmp_path, capsys):
    for step in (3, 12):
        capture.write(
            tmp_path / f"nonfinite_{step + 1:06d}",
            state=dataclasses.replace(state, step=jnp.int32(step)),
            config=CONFIG, table=TABLE, batch=batch(),
        )  # fmt: skip
    with pytest.raises(SystemExit):
        replay.main([str(tmp_path)])
    assert "step 13, batch of 4 images" in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match="has no folder nonfinite_STEP"):
        replay.main([str(tmp_path / "elsewhere")])


@pytest.mark.slow
def test_a_gradient_norm_that_overflows_is_named(state, tmp_path, capsys):
    """Each gradient is finite; the sum of their squares is not."""
    weights = ",".join(["1e25"] * 8)
    assert replayed(tmp_path, state, batch(), f"--config.train.class_weights={weights}") == 1
    assert "1. gradient_norm (forward)" in capsys.readouterr().out


def test_settings_of_another_model_are_rejected(state, tmp_path):
    capture.write(tmp_path / "x", state=state, config=CONFIG, table=TABLE, batch=batch())
    with pytest.raises(InputError, match="another model than the one that was captured"):
        replay.main([str(tmp_path / "x"), "--config.model.settings.decoder_channels=8"])
