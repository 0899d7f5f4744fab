"""The training step: any number of devices, a batch that is not finite, randomness, learning."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segret_jax.checkpoint.state import TrainState, new_state
from segret_jax.config import MeshConfig, ModelConfig, OptimConfig, TrainConfig
from segret_jax.models.factory import build
from segret_jax.models.segret import FAMILY
from segret_jax.parallel.mesh import make_mesh
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import _advance_if_finite, compile_ahead, make_train_step

CLASSES = 4
# Adam's ε is large so that the true gradient of zero of some biases stays rounding noise.
OPTIM = OptimConfig(learning_rate=1e-2, epsilon=1e-3)


def mesh_of(num_devices: int) -> Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:num_devices])


def setup(num_devices: int) -> tuple[TrainState, Callable]:
    """A new state, and the step, which is compiled once for each number of devices."""
    graph, params, batch_stats = build(ModelConfig(), CLASSES, seed=0)
    optimizer = make_optimizer(OPTIM, steps=1000, family=FAMILY)
    state = new_state(params, batch_stats, optimizer)
    state = jax.device_put(state, NamedSharding(mesh_of(num_devices), PartitionSpec()))
    if num_devices not in STEPS:
        STEPS[num_devices] = make_train_step(graph, optimizer, TrainConfig(), mesh_of(num_devices))
    return state, STEPS[num_devices]


STEPS: dict[int, Callable] = {}


def batch_of(seed: int, *, size: int = 32) -> dict[str, np.ndarray]:
    """Four images whose classes can be told by their colors, with a rim to ignore."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (4, 4, 4)).repeat(size // 4, 1).repeat(size // 4, 2)
    colors = np.random.default_rng(99).standard_normal((CLASSES, 3))
    image = colors[label] + 0.3 * rng.standard_normal((4, size, size, 3))
    label[:, :2] = 255
    index = np.arange(4, dtype=np.int32)
    return {"image": image.astype(np.float32), "label": label.astype(np.uint8), "index": index}


def named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}  # donated later


@pytest.mark.slow
def test_two_devices_compute_what_one_does(mini):
    """Loss, batch norm and the draws of dropout are of the whole batch."""
    losses, states = [], []
    for num_devices in (1, 2):
        state, step = setup(num_devices)
        start = named(state.params)
        metrics = []
        for t in range(3):
            state, m = step(state, batch_of(t))
            metrics.append([float(m["loss"]), float(m["accuracy"])])
        assert len(state.step.sharding.device_set) == num_devices
        losses.append(metrics)
        states.append(named((state.params, state.batch_stats)))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    one, two = states
    moved = [name for name in start if np.abs(one["[0]" + name] - start[name]).max() > 1e-4]
    assert len(moved) > 90  # of 139: what is compared below has been trained
    for name in one:
        # Batch norm cancels this bias, and where the branch starts, its rounding noise is 1/√ε.
        noise = "'zero_conv']['bias'" in name or "'zero_norm']['mean'" in name
        atol = 1e-3 if noise else 2e-5
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=atol, err_msg=name)


def test_a_batch_that_is_not_finite_leaves_the_state_and_ends_its_updates(mini):
    state, step = setup(2)
    state, _ = step(state, batch_of(0))
    before = named(state)
    bad = batch_of(1)
    bad["image"][2, 5, 5, 0] = np.inf
    state, metrics = step(state, bad)
    assert not np.isfinite(metrics["loss"])
    for t in (2, 3):
        after = named(state)
        assert after.pop(".bad_step") == 1
        assert after.keys() == before.keys() - {".bad_step"}
        for name, leaf in after.items():
            np.testing.assert_array_equal(leaf, before[name], err_msg=name, strict=True)
        state, metrics = step(state, batch_of(t))  # good, but too late
        assert np.isfinite(metrics["loss"])
    assert before[".bad_step"] == -1
    assert int(state.step) == 1


def test_dropout_follows_from_seed_and_step_alone(mini):
    def loss_at(step_number: int) -> float:
        state, step = setup(1)
        state = dataclasses.replace(state, step=state.step + step_number)
        return float(step(state, batch_of(0))[1]["loss"])

    losses = [loss_at(step_number) for step_number in (5, 5, 6)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_dropout_depends_on_the_seed_unless_it_is_left_out(mini):
    """Read from the traced step: compiling it for another seed would take long."""
    graph, params, batch_stats = build(ModelConfig(), CLASSES, seed=0)
    optimizer = make_optimizer(OPTIM, steps=1000, family=FAMILY)
    state = new_state(params, batch_stats, optimizer)

    def traced(seed: int, *, regularize: bool = True) -> str:
        config, mesh = TrainConfig(seed=seed), mesh_of(1)
        step = make_train_step(graph, optimizer, config, mesh, regularize=regularize)
        return re.sub("0x[0-9a-f]+", "", str(step.trace(state, batch_of(0)).jaxpr))

    text = traced(1)
    assert text == traced(1)
    assert text != traced(2)
    assert "random_bits" in text
    assert "random_bits" not in traced(1, regularize=False)


def test_kernels_are_divided_as_the_batch_is(mini):
    state, step = setup(2)
    jaxpr = str(step.trace(state, batch_of(0)).jaxpr)
    assert jaxpr.count("pallas_call[") == jaxpr.count("shard_map[") > 0


def test_a_step_compiled_ahead_is_not_compiled_again_at_its_call(mini, caplog):
    graph, _, _ = build(ModelConfig(), CLASSES, seed=0)
    step = make_train_step(
        graph, make_optimizer(OPTIM, steps=1000, family=FAMILY), TrainConfig(), mesh_of(1)
    )
    state, _ = setup(1)
    with jax.log_compiles():
        compile_ahead(step, state, batch_of(0))
        assert caplog.text.count("Finished XLA compilation of jit(step)") == 1
        step(state, batch_of(0))
    assert caplog.text.count("Finished XLA compilation of jit(step)") == 1


def test_a_step_overwrites_its_state_without_copying_it_first(mini):
    state, step = setup(1)
    text = step.lower(state, batch_of(0)).compile().as_text()
    assert len(re.findall(r"%state_params\w+\S* = \S+ parameter\(", text)) > 100
    assert not re.findall(r" copy\((?:\S+ )?%(state_\w+)", text)


def test_the_state_keeps_its_types_so_that_the_step_is_compiled_once(mini):
    def types(state: TrainState) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(p): (x.shape, x.dtype, x.weak_type) for p, x in leaves}

    state, step = setup(1)
    before = types(state)
    assert types(step(state, batch_of(0))[0]) == before


def test_four_images_overfit(mini):
    state, step = setup(1)
    losses = []
    for _ in range(100):
        state, metrics = step(state, batch_of(0))
        losses.append(float(metrics["loss"]))
    assert losses[0] > 1
    assert losses[-1] < 0.2 * losses[0]
    assert float(metrics["accuracy"]) > 85  # of 93.75 that are labeled


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_bad_steps_are_skipped_up_to_their_limit_and_then_nothing_changes(limit):
    def state(step: int, weight: float, num_bad: int = 0, bad_step: int = -1) -> TrainState:
        numbers = [jnp.int32(x) for x in (step, num_bad, bad_step)]
        weights = {"w": jnp.float32(weight)}
        return TrainState(*numbers, weights, weights, weights, None)

    now = state(0, 1.0)
    for finite in (True, False, False, False, True):
        updated = state(int(now.step) + 1, float(now.params["w"]) + 1, int(now.num_bad))
        now = _advance_if_finite(jnp.bool_(finite), now, updated, max_bad_steps=limit)
    assert int(now.num_bad) == limit
    assert int(now.step) == 1 + limit
    assert int(now.bad_step) == 1 + limit  # the third bad one at most ends it
    assert float(now.params["w"]) == 2.0  # of the one good step before
