"""Five training steps, and every parameter's learning rate and decay, against the original."""

import json
import re
import zlib
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.checkpoint.packing import moments
from segret_jax.checkpoint.state import new_state
from segret_jax.config import ModelConfig, OptimConfig, TrainConfig
from segret_jax.models.factory import abstract
from segret_jax.models.segret import FAMILY
from segret_jax.models.segret.torch_format import key as torch_key
from segret_jax.parallel.mesh import data_mesh
from segret_jax.training.optimizer import learning_rate_schedule, make_optimizer
from segret_jax.training.step import make_train_step
from tests import golden_weights as golden

pytestmark = pytest.mark.usefixtures("optimized")  # the program that users run

UNUSED = re.compile("conv_seg|num_batches_tracked|Relpos")
OPTIM = OptimConfig(learning_rate=1e-3, weight_decay=0.01)
# A softmax (k's bias) or a following batch norm cancels these gradients: what is left is rounding,
# which Adam turns into drift. The goldens' README exempts them.
NOISE = re.compile(
    r"k_proj\.bias|zeroLayer\.conv\.bias|reduction\.bias|patch_embed\.proj\.(0|3|6|9)\.bias"
)


def training_batch(step: int) -> dict[str, np.ndarray]:
    image = golden.noise(f"train/image/{step}", (2, 3, 64, 64)).transpose(0, 2, 3, 1)
    rng = np.random.RandomState(zlib.crc32(f"train/label/{step}".encode()))
    label = rng.randint(0, 150, (2, 64, 64))
    label[rng.rand(2, 64, 64) < 0.1] = 255
    return {"image": image, "label": label.astype(np.uint8)}


def by_torch_name(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        torch_key(tuple(entry.key for entry in path)): np.asarray(leaf, np.float64)
        for path, leaf in leaves
    }


@pytest.fixture(scope="module")
def run(optimized):
    graph, params, stats = abstract(ModelConfig(matmul_precision="highest"), 150)
    params, stats = golden.filled(params), golden.filled(stats)
    optimizer = make_optimizer(OPTIM, steps=10, family=FAMILY)
    state = new_state(params, stats, optimizer)
    step = make_train_step(graph, optimizer, TrainConfig(), data_mesh(), regularize=False)
    metrics = []
    for t in range(5):
        state, m = step(state, training_batch(t))
        metrics.append(m)
        if t == 0:
            first_moment = jax.device_get(moments(state.opt_state, state.params)["mu"])
    return state, metrics, first_moment


@pytest.mark.slow
def test_losses_and_accuracies(run):
    expected = golden.load("train_tiny_5steps")
    _, metrics, _ = run
    np.testing.assert_allclose([m["loss"] for m in metrics], expected["loss"], rtol=1e-4)
    accuracy = [m["accuracy"] for m in metrics]
    np.testing.assert_allclose(accuracy[:3], expected["acc"][:3], rtol=1e-6)
    # Rounding grows with the steps: on some processors one of 8,192 pixels is judged otherwise.
    np.testing.assert_allclose(accuracy, expected["acc"], rtol=0, atol=1.01 * 100 / 8192)
    schedule = learning_rate_schedule(OPTIM, 10)
    np.testing.assert_allclose([schedule(t) for t in range(5)], expected["lr"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["grad0", "final"])
def test_gradients_and_final_tensors(run, what):
    state, _, first_moment = run
    if what == "grad0":
        ours = by_torch_name(jax.tree.map(lambda m: m / 0.1, first_moment))  # m = (1 − β₁)·g
    else:
        ours = by_torch_name(state.params) | by_torch_name(state.batch_stats)
    expected = {
        name.removeprefix(f"{what}/"): summary
        for name, summary in golden.load("train_tiny_5steps").items()
        if name.startswith(f"{what}/") and not UNUSED.search(name)
    }
    assert ours.keys() == expected.keys()
    for name, (total, absolute, norm) in expected.items():
        if NOISE.search(name):
            continue
        value = ours[name]
        assert abs(value.sum() - total) < 1e-3 * absolute, name
        assert abs(np.abs(value).sum() - absolute) < 1e-3 * absolute, name
        assert abs(np.linalg.norm(value) - norm) < 1e-3 * norm, name


def test_every_parameter_has_the_released_learning_rate_and_decay():
    expected = json.loads((golden.GOLDENS / "train_param_groups.json").read_text())
    _, params, _ = abstract(ModelConfig(), 150)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [tuple(entry.key for entry in path) for path, _ in leaves]
    rules = FAMILY.load()
    ours = {torch_key(path): rules.parameter_groups[rules.parameter_group(path)] for path in paths}
    expected = {k: v for k, v in expected.items() if not UNUSED.search(k)}
    assert ours.keys() == expected.keys()
    for name, (multiplier, decays) in ours.items():
        assert (multiplier * 1e-3, 0.01 if decays else 0.0) == pytest.approx(expected[name]), name
