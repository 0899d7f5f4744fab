"""Checkpoints of earlier formats: they resume, with the same moments and losses.

tests/checkpoint/format_1 holds the third of six steps of two runs, with and without averaged
weights, written by commit 8537a1c with `config_of` and the variant `SMALL` on two CPU devices, the
losses of the steps that followed there, and hashes of the moments of each parameter.
"""

import dataclasses
import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint import orbax_model
from segret_jax.checkpoint.manager import Checkpoints
from segret_jax.checkpoint.packing import moments
from segret_jax.checkpoint.state import TrainState
from segret_jax.config import Config, DataConfig, EvalConfig, MeshConfig, OptimConfig, TrainConfig
from segret_jax.data.pipeline import class_table, open_source
from segret_jax.errors import InputError
from segret_jax.models.segret import variants
from segret_jax.parallel.mesh import make_mesh
from segret_jax.parallel.sharding import shard_state
from segret_jax.training.initialization import abstract_state
from segret_jax.training.loop import train
from tests.conftest import MINI
from tests.runs import leaves, records

FOLDER = Path(__file__).parent / "format_1"
SMALL = dataclasses.replace(MINI, widths=(8,) * 4, ffn_ratios=(1,) * 4, decoder_channels=8)


def config_of(ema_decay: float = 0.0, **mesh: Any) -> Config:
    return Config(
        data=DataConfig(
            crop=(32, 32), synthetic_size=(32, 32), resize_base=(32, 32),
            synthetic_train=10, synthetic_validation=1,
        ),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=3),
        train=TrainConfig(
            steps=6, batch_size=4, log_every=1, eval_every=100, save_every=3, ema_decay=ema_decay,
        ),
        eval=EvalConfig(resize_target=(32, 32), pictures=0),
        mesh=MeshConfig(**mesh),
    )  # fmt: skip


CONFIGS = {"plain": config_of(), "averaged": config_of(0.5)}


@pytest.fixture
def runs(mini, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(variants.VARIANTS, "tiny", SMALL)
    with tarfile.open(FOLDER / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def expected(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))[name]


def restored(workdir: Path, config: Config) -> TrainState:
    table = class_table(config.data)
    _, _, shapes = abstract_state(config, table.num_classes)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    like = shard_state(zeros, make_mesh(config.mesh))
    run = Checkpoints(workdir, config, table, open_source(config.data, "training"))
    state = run.restore_latest(like)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
    run.close()
    return state


def hashes(state: TrainState) -> dict[str, str]:
    found = jax.tree_util.tree_leaves_with_path(moments(state.opt_state, state.params))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): hashlib.sha256(
            np.asarray(leaf).tobytes()
        ).hexdigest()[:12]
        for path, leaf in found
    }


@pytest.mark.parametrize(("name", "fsdp"), [("plain", 1), ("averaged", 2)])
def test_moments_of_format_1_come_back_for_each_parameter(runs, name, fsdp):
    config = dataclasses.replace(CONFIGS[name], mesh=MeshConfig(fsdp=fsdp))
    checkpoint = runs / name / "checkpoints" / "3"
    assert orbax_model.load_format(checkpoint) == 1
    state = restored(runs / name, config)
    assert hashes(state) == expected(name)["moments"]
    stored = leaves(runs / name, 3)
    kernel = "['decoder']['classify']['kernel']"
    params = stored.get(f"training['params']{kernel}", stored[f"model['params']{kernel}"])
    np.testing.assert_array_equal(state.params["decoder"]["classify"]["kernel"], params)
    checkpoints.load_model(checkpoint, config)


@pytest.mark.slow
def test_a_run_of_format_1_continues_with_the_same_losses_and_is_saved_in_the_new_format(runs):
    workdir = runs / "plain"
    assert train(CONFIGS["plain"], workdir) is not None
    losses = {str(r["step"]): r["loss"] for r in records(workdir) if r["kind"] == "train"}
    assert sorted(losses) == ["4", "5", "6"]
    assert losses == pytest.approx(expected("plain")["losses"], rel=1e-5)
    newest = workdir / "checkpoints" / "6"
    assert orbax_model.load_format(newest) == 2
    scale = "['encoder']['stem']['norms']['0']['scale']"
    assert leaves(workdir, 6)[f"training['opt_state'][0]['mu']{scale}"].shape == (4,)
    assert not list(workdir.glob("damaged*"))


def test_missing_format_is_not_taken_for_an_older_one(runs):
    """Only a checkpoint without that item *and* with plain sums is of format 1."""
    folder = runs / "plain" / "checkpoints" / "3"
    sums = json.loads((folder / "sums" / "metadata").read_text())
    (folder / "sums" / "metadata").write_text(json.dumps(sums | {"format": 2}))
    with pytest.raises(orbax_model.UnreadableError, match="format is missing"):
        orbax_model.load_format(folder)


def test_a_checkpoint_of_format_0_is_taken_as_it_is(runs):
    """It has neither checksums nor the names of the training images."""
    for item in ("sums", "data"):
        shutil.rmtree(runs / "plain" / "checkpoints" / "3" / item)
    assert orbax_model.load_format(runs / "plain" / "checkpoints" / "3") == 0
    assert hashes(restored(runs / "plain", CONFIGS["plain"])) == expected("plain")["moments"]


def test_the_plain_sums_of_format_1_are_checked(runs):
    checkpoint = runs / "plain" / "checkpoints" / "3"
    file = checkpoint / "sums" / "metadata"
    sums = json.loads(file.read_text())
    sums["model"]["params/decoder/classify/bias"] += 1
    file.write_text(json.dumps(sums))
    message = "params/decoder/classify/bias is not what was saved"
    with pytest.raises(InputError, match=rf"cannot be loaded \({message}"):
        checkpoints.load_model(checkpoint, CONFIGS["plain"])
    with pytest.raises(InputError, match=rf"can be read \(3: {message}"):
        restored(runs / "plain", CONFIGS["plain"])
