"""Runs of the second family: resumed to the same bits, on any mesh, replayed, predicted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.checkpoint.state import new_state
from segret_jax.cli import eval as eval_cli
from segret_jax.cli import replay
from segret_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    choose_family,
    validate,
)
from segret_jax.data.pipeline import class_table
from segret_jax.evaluation.results import read
from segret_jax.models.factory import build
from segret_jax.models.segman import FAMILY, variants
from segret_jax.parallel.mesh import make_mesh
from segret_jax.parallel.sharding import shard_batch, shardings
from segret_jax.run.logger import RunLogger
from segret_jax.training import capture
from segret_jax.training.loop import train
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import make_train_step
from tests.integration.test_input_sizes import assert_a_low_photograph_is_predicted
from tests.runs import leaves

pytestmark = pytest.mark.slow

MESHES = [(1, 1), (2, 1), (2, 2), (1, 8)]
SIZE = (224, 224)


def config_of() -> Config:
    config = Config(
        data=DataConfig(
            crop=SIZE, synthetic_size=SIZE, resize_base=SIZE, synthetic_train=8,
            synthetic_validation=1,
        ),
        optim=OptimConfig(learning_rate=1e-4, warmup_steps=2),
        train=TrainConfig(steps=4, batch_size=2, log_every=1, eval_every=100),
        eval=EvalConfig(resize_target=SIZE, pictures=0),
    )  # fmt: skip
    choose_family(config.model, "segman")
    return validate(config)


def batch_of(seed: int, images: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((images, *SIZE, 3), np.float32),
        "label": rng.integers(0, 8, (images, *SIZE), np.uint8),
        "index": np.arange(images, dtype=np.int32),
    }


def test_a_stopped_run_continues_to_the_same_bits(mini, tmp_path, monkeypatch):
    config, (whole, parts) = config_of(), (tmp_path / "whole", tmp_path / "parts")
    result = train(config, whole)

    advance, calls = RunLogger.advance, []

    def stop_after_two(logger: RunLogger) -> None:
        advance(logger)
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunLogger, "advance", stop_after_two)
    assert train(config, parts) is None
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["2"]
    assert train(config, parts).metrics.mean_iou == result.metrics.mean_iou
    expected, found = leaves(whole, 4), leaves(parts, 4)
    assert expected.keys() == found.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name, strict=True)

    assert_commands_stretch(parts, tmp_path)


def assert_commands_stretch(run: Path, folder: Path) -> None:
    """Evaluation and prediction by the command, of images that are too small for the network."""
    eval_cli.main(["--workdir", str(run)])
    after, during = read(run / "evaluation/metrics.json"), read(run / "metrics.json")
    assert after.content["mIoU"] == during.content["mIoU"]
    assert "min_side" not in after.protocol["must_agree"]
    size, small = "--config.eval.resize_target=(112,112)", folder / "small"
    eval_cli.main(["--workdir", str(run), size, "--out", str(small)])
    assert read(small / "metrics.json").protocol["must_agree"]["min_side"] == 224
    assert_a_low_photograph_is_predicted(run, folder)


def test_a_layer_that_is_not_finite_is_named(mini, tmp_path, capsys):
    config = config_of()
    table = class_table(config.data)
    _, params, batch_stats = build(config.model, table.num_classes, seed=0)
    scan = params["encoder"]["stages"][1][0]["mixer"]["scan"]
    scan["skip"] = scan["skip"] * np.float32(np.nan)
    optimizer = make_optimizer(config.optim, config.train.steps, FAMILY)
    state = new_state(params, batch_stats, optimizer)
    folder = tmp_path / "nonfinite_000000"
    capture.write(folder, state=state, config=config, table=table, batch=batch_of(0, 2))
    with pytest.raises(SystemExit) as exited:
        replay.main([str(folder)])
    assert exited.value.code == 1
    assert "stage2" in capsys.readouterr().out


def losses_on(mesh: tuple[int, int]) -> list[float]:
    config = config_of()
    devices = make_mesh(MeshConfig(data=mesh[0], fsdp=mesh[1]), jax.devices()[: mesh[0] * mesh[1]])
    graph, params, batch_stats = build(config.model, 8, seed=0)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-4), steps=1000, family=FAMILY)
    state = new_state(params, batch_stats, optimizer)
    state = jax.device_put(state, shardings(state, devices))
    step, losses = make_train_step(graph, optimizer, config.train, devices), []
    for t in range(3):
        state, metrics = step(state, shard_batch(batch_of(t, 8), devices, 1))
        losses.append(float(metrics["loss"]))
    return losses


def test_losses_agree_on_1_2_4_and_8_devices_replicated_or_split(tmp_path):
    """With drop path and dropout, whose draws belong to the images."""
    file = tmp_path / "losses.json"
    command: list[Any] = [sys.executable, "-m", "tests.integration.test_segman", file]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    first, *others = json.loads(file.read_text())
    assert len(set(first)) == 3
    for mesh, found in zip(MESHES[1:], others, strict=True):
        np.testing.assert_allclose(found, first, rtol=1e-4, err_msg=str(mesh))


def main(file: Path) -> None:
    """Train on every mesh, for the test above: it needs eight devices."""
    from tests.conftest import SEGMAN_MINI  # which asks for two devices, too

    jax.config.update("jax_num_cpu_devices", 8)
    variants.VARIANTS["tiny"] = SEGMAN_MINI
    file.write_text(json.dumps([losses_on(mesh) for mesh in MESHES]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
