"""The schedule against its formulas and AdamW against a step written by hand."""

import jax
import numpy as np
import pytest

from segret_jax.checkpoint.packing import pack, unpack
from segret_jax.config import OptimConfig
from segret_jax.models.segret import FAMILY
from segret_jax.parallel.sharding import is_large
from segret_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tests.models.test_layers import noise


def test_poly_starts_at_the_learning_rate_and_ends_at_the_smallest():
    schedule = learning_rate_schedule(OptimConfig(learning_rate=2e-4, poly_power=0.9), 100)
    assert schedule(0) == pytest.approx(2e-4)
    assert schedule(25) == pytest.approx(2e-4 * 0.75**0.9)
    assert schedule(99) == pytest.approx(2e-4 * 0.01**0.9)
    assert schedule(100) == 0
    linear = OptimConfig(learning_rate=1e-3, poly_power=1.0, min_learning_rate=1e-4)
    assert learning_rate_schedule(linear, 10)(4) == pytest.approx(9e-4 * 0.6 + 1e-4)
    assert learning_rate_schedule(linear, 10)(10) == pytest.approx(1e-4)


def test_warmup_multiplies_the_poly_schedule_and_ends_exactly():
    config = OptimConfig(learning_rate=1e-3, warmup_steps=20, warmup_ratio=1e-2)
    schedule = learning_rate_schedule(config, 100)
    poly = learning_rate_schedule(OptimConfig(learning_rate=1e-3), 100)
    assert schedule(0) == pytest.approx(1e-5)
    for t in (0, 1, 10, 19):
        expected = 1e-3 * (1 - t / 100) ** 0.9 * (1 - (1 - t / 20) * 0.99)
        assert schedule(t) == pytest.approx(expected, rel=1e-5)
    assert schedule(19) < 0.96 * poly(19)
    for t in (20, 21, 99):
        assert schedule(t) == pytest.approx(poly(t), rel=1e-6)


def test_schedule_of_a_traced_step_is_the_same():
    config = OptimConfig(learning_rate=1e-3, warmup_steps=5, min_learning_rate=1e-5)
    schedule = learning_rate_schedule(config, 160_000)
    for t in (0, 3, 5, 80_000, 159_999):
        assert float(jax.jit(schedule)(t)) == pytest.approx(float(schedule(t)), rel=1e-4)


# One parameter of each kind, with the rule that the released code has for it.
RULES = {
    ("encoder", "stem", "norms", 0, "scale"): (0.1, False),
    ("encoder", "stem", "convs", 0, "bias"): (1.0, True),
    ("encoder", "stages", 1, 0, "norm2", "bias"): (0.1, False),
    ("encoder", "stages", 1, 0, "retention", "k", "kernel"): (1.0, True),
    ("encoder", "stages", 1, 0, "gamma1"): (1.0, True),
    ("encoder", "downsamples", 2, "norm", "bias"): (0.1, False),
    ("encoder", "downsamples", 2, "conv", "kernel"): (1.0, True),
    ("decoder", "projections", 3, "zero_norm", "scale"): (1.0, False),
    ("decoder", "projections", 3, "zero_conv", "bias"): (1.0, True),
    ("decoder", "fuse_norm", "bias"): (1.0, False),
    ("decoder", "classify", "bias"): (1.0, True),
}


SHAPES = {path: (8, 9) if path[-1] == "kernel" else (3, 2) for path in RULES}


def values(seed: int) -> dict:
    return {path: noise(*shape, seed=seed + i) for i, (path, shape) in enumerate(SHAPES.items())}


def tree_of(values: dict) -> dict:
    tree: dict = {}
    for path, value in values.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def value_at(tree: dict, path: tuple) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


@pytest.mark.parametrize("norm_rules", [True, False])
def test_three_steps_equal_adamw_by_hand(norm_rules):
    config = OptimConfig(
        learning_rate=1e-2, weight_decay=0.3, beta1=0.8, beta2=0.95, epsilon=1e-3,
        norm_rules=norm_rules, warmup_steps=2, warmup_ratio=0.5,
    )  # fmt: skip
    start, grads = values(0), [values(100 * t) for t in (1, 2, 3)]
    params = tree_of(start)
    optimizer = make_optimizer(config, steps=10, family=FAMILY)
    opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        updates, opt_state = update(tree_of(grad), opt_state, params)
        params = jax.tree.map(np.add, params, updates)

    rates = [1e-2 * (1 - t / 10) ** 0.9 * (1 - max(1 - t / 2, 0) * 0.5) for t in range(3)]
    for path, rule in RULES.items():
        multiplier, decays = rule if norm_rules else (1.0, True)
        p, m, v = start[path].astype(np.float64), 0.0, 0.0
        for t, (rate, grad) in enumerate(zip(rates, grads, strict=True), start=1):
            g = grad[path].astype(np.float64)
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            step = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
            p = p - multiplier * rate * (step + (0.3 if decays else 0) * p)
        np.testing.assert_allclose(value_at(params, path), p, rtol=1e-5, atol=1e-6, err_msg=path)


def test_small_leaves_share_a_vector_and_come_back():
    tree = tree_of(values(0))
    packed = pack(tree)
    kernels = [path for path, shape in SHAPES.items() if is_large(shape)]
    assert len(kernels) == 2
    assert len(jax.tree.leaves(packed["large"])) == len(kernels)
    assert {v.ndim for name, v in packed.items() if name != "large"} == {1}
    assert len(jax.tree.leaves(packed)) < len(RULES)
    jax.tree.map(np.testing.assert_array_equal, unpack(packed, like=tree), tree)
