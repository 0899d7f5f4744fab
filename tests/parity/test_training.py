"""Five training steps, and every parameter's learning rate and decay, against the original."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import ModelConfig, OptimConfig, TrainConfig
from segret_jax.models.segret import SegRet
from segret_jax.training.optim import learning_rate_schedule, make_optimizer, parameter_rule
from segret_jax.training.state import new_state
from segret_jax.training.step import data_mesh, make_train_step
from tests import golden_weights as golden

OPTIM = OptimConfig(learning_rate=1e-3, weight_decay=0.01)
# A softmax or a following batch norm cancels these biases' gradients: what is left is rounding.
NOISE = ("k_proj.bias", "zeroLayer.conv.bias", "reduction.bias")


def is_noise(key: str) -> bool:
    return key.endswith(NOISE) or ("patch_embed" in key and int(key.split(".")[3]) % 3 == 0
                                   and key.endswith("bias"))


def training_batch(step: int) -> dict[str, np.ndarray]:
    import zlib
    image = golden.noise(f"train/image/{step}", (2, 3, 64, 64)).transpose(0, 2, 3, 1)
    rng = np.random.RandomState(zlib.crc32(f"train/label/{step}".encode()))
    label = rng.randint(0, 150, (2, 64, 64))
    label[rng.rand(2, 64, 64) < 0.1] = 255
    return {"image": image, "label": label.astype(np.uint8)}


def summaries(tree, prefix=""):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {golden.torch_key([p.key for p in path]): np.asarray(x, np.float64) for path, x in flat}


@pytest.fixture(scope="module")
def run():
    model = nnx.eval_shape(
        lambda: SegRet(ModelConfig(matmul_precision="highest"), 150, rngs=nnx.Rngs(0))
    )
    golden.fill(model, golden.keys("segret_tiny"))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    optimizer = make_optimizer(OPTIM, params, steps=10)
    state = new_state(params, stats, optimizer)
    step = make_train_step(graph, optimizer, TrainConfig(), data_mesh(), regularize=False)
    metrics = []
    for t in range(5):
        state, m = step(state, training_batch(t))
        metrics.append(m)
        if t == 0:
            first_moment = jax.device_get(state.opt_state[0].mu)
    return state, metrics, first_moment


def test_losses_and_accuracies(run):
    expected = golden.load("train_tiny_5steps")
    for name in ("loss", "acc"):
        ours = [float(m[{"acc": "accuracy"}.get(name, name)]) for m in run[1]]
        print(name, ours, expected[name])
        np.testing.assert_allclose(ours, expected[name], rtol=1e-4)
    schedule = learning_rate_schedule(OPTIM, 10)
    np.testing.assert_allclose([schedule(t) for t in range(5)], expected["lr"], rtol=1e-6)


@pytest.mark.parametrize("what", ["grad0", "final"])
def test_gradients_and_final_tensors(run, what):
    expected = golden.load("train_tiny_5steps")
    state, _, first_moment = run
    if what == "grad0":
        ours = summaries(jax.tree.map(lambda m: m / 0.1, first_moment))  # mu = (1 − β₁)·g
    else:
        ours = summaries(state.params) | summaries(state.batch_stats)
    checked = 0
    worst = {}
    for key, value in ours.items():
        if f"{what}/{key}" not in expected:
            print("missing", key); continue
        if is_noise(key):
            continue
        total, absolute, norm = expected[f"{what}/{key}"]
        e = (abs(value.sum()-total)/absolute, abs(np.abs(value).sum()/absolute-1), abs(np.linalg.norm(value)/norm-1))
        worst[key]=max(e)
    for k in sorted(worst,key=worst.get)[-8:]: print(what,k,worst[k])
    assert max(worst.values())<1e-3
