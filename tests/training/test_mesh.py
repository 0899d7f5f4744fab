"""Any mesh gives the same training; accumulation the large batch's gradient; averages; remat."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from segret_jax.checkpoint.packing import moments
from segret_jax.checkpoint.state import new_state
from segret_jax.config import Config, MeshConfig, ModelConfig, TrainConfig
from segret_jax.errors import InputError
from segret_jax.models import blocks
from segret_jax.models.factory import abstract, build
from segret_jax.models.segret import FAMILY, variants
from segret_jax.parallel.mesh import check_batch, make_mesh
from segret_jax.parallel.sharding import is_large, partition, shard_batch, shardings
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import make_train_step
from tests.training.test_step import CLASSES, OPTIM, batch_of, named

MESHES = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (8, 1), (1, 8)]
STEPS = 20
# A large rate would let the last bits grow over the steps.
SLOW = dataclasses.replace(OPTIM, learning_rate=2e-3)
# Batch norm cancels these biases, or the softmax does (that of the keys): their true gradient is
# zero, and Adam makes steps of its rounding noise. The running mean follows the bias before it.
CANCELED = re.compile(r"(convs/\d+|downsamples/\d+/conv|zero_conv)/bias$|retention/k/bias$")
BIAS_BEFORE = {"norms": "convs", "norm": "conv", "zero_norm": "zero_conv"}


def train(
    mesh: tuple[int, int], *, steps: int, model: Any = None, **options: Any
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Train the small model on `mesh`; return its losses and its last state by path."""
    config = TrainConfig(**options)
    devices = make_mesh(MeshConfig(data=mesh[0], fsdp=mesh[1]), jax.devices()[: mesh[0] * mesh[1]])
    graph, params, batch_stats = build(model or ModelConfig(), CLASSES, seed=0)
    optimizer = make_optimizer(SLOW, steps=1000, family=FAMILY)
    state = new_state(params, batch_stats, optimizer, averaged=config.ema_decay > 0)
    state = jax.device_put(state, shardings(state, devices))
    placed = jax.tree.map(lambda x: x.sharding, state)
    step, losses = make_train_step(graph, optimizer, config, devices), []
    for t in range(steps):
        batch = shard_batch(eight(t), devices, config.accumulate)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: x.sharding, state) == placed
    assert step._cache_size() == min(steps, 1)  # type: ignore[attr-defined]
    by_leaf = moments(state.opt_state, state.params)
    return losses, named(dataclasses.replace(state, opt_state=by_leaf))


def eight(seed: int) -> dict[str, np.ndarray]:
    """A batch of eight images."""
    parts = [batch_of(2 * seed), batch_of(2 * seed + 1)]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return joined | {"index": np.arange(8, dtype=np.int32)}


@pytest.mark.slow
def test_blocks_in_a_loop_agree_on_two_devices_replicated_or_split(mini, monkeypatch):
    monkeypatch.setitem(variants.VARIANTS, "tiny", dataclasses.replace(mini, depths=(1, 1, 3, 1)))
    in_turn, _ = train((1, 1), steps=2)
    monkeypatch.setattr(blocks, "MIN_LOOP", 3)
    losses, expected = train((1, 1), steps=2)
    assert losses == pytest.approx(in_turn, rel=1e-5)
    means = [name for name in expected if "mu" in name and not CANCELED.search(_path(name))]
    assert len(means) > 100
    for mesh in ((2, 1), (1, 2)):
        found, state = train(mesh, steps=2)
        assert found == pytest.approx(losses, rel=1e-4)
        for name in means:
            leaf = expected[name]
            atol = 1e-2 * max(np.abs(leaf).max(), 1e-3)
            np.testing.assert_allclose(state[name], leaf, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
def test_twenty_steps_agree_on_1_2_4_and_8_devices_replicated_or_split(tmp_path):
    """Stated tolerance: losses 1e-4, parameters and statistics 1e-2 of the leaf's largest value."""
    command = [sys.executable, "-m", "tests.training.test_mesh", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    losses = json.loads((tmp_path / "losses.json").read_text())
    states = [dict(np.load(tmp_path / f"{d}x{f}.npz")) for d, f in MESHES]
    for mesh, found, state in zip(MESHES, losses, states, strict=True):
        np.testing.assert_allclose(found, losses[0], rtol=1e-4, err_msg=str(mesh))
        assert found[-1] < 0.95 * found[0]
        assert_close(state, states[0], where=str(mesh))


def assert_close(
    state: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, where: str
) -> None:
    """Compare by paths; running means less the bias that they follow."""
    compared = [name for name in expected if not CANCELED.search(name)]
    assert len(compared) > 300
    for name in compared:
        ours, theirs = (x[name] - _bias_before(x, name) for x in (state, expected))
        error = np.abs(ours - theirs).max() / max(np.abs(expected[name]).max(), 1e-3)
        assert error < 1e-2, (where, name, error)


def _bias_before(state: dict[str, np.ndarray], name: str) -> np.ndarray | float:
    """Return the bias of the layer before a batch norm, for the path of its running mean."""
    if not name.endswith("/mean"):
        return 0.0
    parts = ["params" if part == "batch_stats" else part for part in name.split("/")]
    bias = "/".join([*(BIAS_BEFORE.get(part, part) for part in parts[:-1]), "bias"])
    return state.get(bias, 0.0)


def test_kernels_are_split_along_fsdp_and_all_else_is_whole():
    _, params, batch_stats = abstract(ModelConfig(variant="large"), 150)
    optimizer = make_optimizer(OPTIM, steps=10, family=FAMILY)
    create = functools.partial(new_state, optimizer=optimizer, averaged=True)
    state = jax.eval_shape(create, params, batch_stats)
    whole, split = 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        spec = partition(leaf.shape, 16)
        if spec == PartitionSpec():
            whole += leaf.size
        else:
            assert jax.tree_util.keystr(path, simple=True, separator="/").endswith("kernel")
            assert leaf.shape[len(spec) - 1] % 16 == 0
            split += leaf.size
    assert split > 0.98 * (split + whole)
    assert partition((512, 150), 16) == PartitionSpec("fsdp")
    assert partition((64, 64), 1) == PartitionSpec()


@pytest.mark.parametrize("shape", [(64,), (), (3, 3, 1536), (5, 5, 64), (256, 2), (3, 3, 3, 32)])
def test_small_leaves_are_whole_and_packed_whatever_their_name(shape):
    """By name, the FFN's depthwise kernels (`dwconv`) were taken for those of convolutions."""
    assert partition(shape, 2) == PartitionSpec()
    assert not is_large(shape)


@pytest.mark.parametrize("shape", [(64, 192), (3, 3, 32, 64), (2, 64, 64)])
def test_kernels_of_dense_layers_and_convolutions_are_split_whatever_their_name(shape):
    assert partition(shape, 2) == PartitionSpec(*[None] * (len(shape) - 1), "fsdp")
    odd = (*shape[:-1], shape[-1] + 1)
    assert partition(odd, 2) == PartitionSpec(*[None] * (len(shape) - 2), "fsdp")


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"mesh\.data is 3 and mesh\.fsdp is 1, but there are 2"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(InputError, match="give numbers that multiply to 2, or -1 for one"):
        make_mesh(MeshConfig(data=-1, fsdp=-1))
    assert dict(make_mesh(MeshConfig(fsdp=-1, data=1)).shape) == {"data": 1, "fsdp": 2}
    config = Config(train=TrainConfig(batch_size=6, accumulate=2))
    with pytest.raises(
        InputError, match=r"batch_size is 6, the batch of all 2 devices x train\.acc"
    ):
        check_batch(config, make_mesh(MeshConfig()))


@pytest.mark.slow
def test_accumulated_gradients_are_the_large_batch_s(mini, monkeypatch):
    """But for batch norm: with its running statistics in training, too, nothing else differs."""
    from segret_jax.models.layers import BatchNorm

    usual = BatchNorm.__call__
    monkeypatch.setattr(BatchNorm, "__call__", lambda self, x, *, train=False: usual(self, x))
    options = {"steps": 3, "loss_normalizer": "valid_pixels"}
    whole_losses, whole = train((2, 1), **options)
    losses, parts = train((2, 1), **options, accumulate=4)
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-5)
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_batch_norm_sees_each_part_of_an_accumulated_batch(mini):
    """One step: the running mean has moved once for each part, toward that part's mean."""
    (_, whole), (_, parts) = (train((1, 1), steps=1, accumulate=a) for a in (1, 2))
    name = ".batch_stats['encoder']['stem']['norms'][0]['mean']"
    halves = [half_mean(half) for half in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(whole[name], 0.1 * np.mean(halves, 0), rtol=1e-4, atol=1e-6)
    expected = 0.9 * 0.1 * halves[0] + 0.1 * halves[1]
    np.testing.assert_allclose(parts[name], expected, rtol=1e-4, atol=1e-6)


def half_mean(half: slice) -> np.ndarray:
    """The mean over images and pixels of the stem's first convolution."""
    from flax import nnx

    model = nnx.merge(*build(ModelConfig(), CLASSES, seed=0))
    return np.asarray(model.encoder.stem.convs[0](eight(0)["image"][half]).mean((0, 1, 2)))


@pytest.mark.slow
def test_averaged_weights_follow_their_formula(mini):
    _, start = train((1, 1), steps=0, ema_decay=0.5)
    _, one = train((1, 1), steps=1, ema_decay=0.5)
    _, two = train((1, 1), steps=2, ema_decay=0.5)
    names = [name for name in start if name.startswith(".ema['params']")]
    assert len(names) > 100
    for name in names:
        live = name.replace(".ema['params']", ".params")
        first = start[live] + 0.9 * (one[live] - start[live])  # decay (1 + 0)/(10 + 0)
        second = first + (1 - 2 / 11) * (two[live] - first)
        np.testing.assert_allclose(one[name], first, rtol=1e-5, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(two[name], second, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_computing_stages_again_changes_nothing(mini):
    losses, state = train((1, 1), steps=2)
    again_losses, again = train((1, 1), steps=2, model=ModelConfig(remat=(1, 2, 3, 4)))
    np.testing.assert_allclose(again_losses, losses, rtol=1e-5)
    for name, expected in state.items():
        if not CANCELED.search(_path(name)):
            np.testing.assert_allclose(again[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)


def main(folder: Path) -> None:
    """Train on every mesh, for the test above: it needs eight devices."""
    from tests.conftest import MINI  # which asks for two devices, too, and for fast compilation

    jax.config.update("jax_num_cpu_devices", 8)
    variants.VARIANTS["tiny"] = MINI
    losses = []
    for mesh in MESHES:
        found, state = train(mesh, steps=STEPS)
        losses.append(found)
        np.savez(folder / f"{mesh[0]}x{mesh[1]}.npz", **{_path(n): x for n, x in state.items()})
    (folder / "losses.json").write_text(json.dumps(losses))


def _path(name: str) -> str:
    return "/".join(re.findall(r"[\w]+", name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
