"""On the device itself: compiled kernels, the goldens, a bfloat16 training step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import checks, plan, toy
from segret_jax.checkpoint.state import new_state
from segret_jax.config import ModelConfig, OptimConfig, TrainConfig, choose_family
from segret_jax.models.factory import build
from segret_jax.models.families import FAMILIES
from segret_jax.models.kernels import platform_of
from segret_jax.models.segman import variants as segman
from segret_jax.models.segret import variants as segret
from segret_jax.parallel.mesh import data_mesh
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import make_train_step

pytestmark = pytest.mark.gpu

SIZES = {"segret": (64, 96), "segman": (224, 256)}
ODD = [case for case in plan.LINES if case[1] % 16 or case[2] % 16]


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the toy models known by name."""
    monkeypatch.setitem(segret.VARIANTS, toy.NAME, toy.TOY)
    monkeypatch.setitem(segman.VARIANTS, toy.NAME, toy.SEGMAN_TOY)


def has_kernels(device: jax.Device) -> bool:
    """Whether the Triton kernels are for it: an A100, RTX 30 or later."""
    return float(device.compute_capability) >= 8.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ODD, ids=str)
def test_compiled_retention_equals_its_formulas_with_all_gradients(gpu, case, dtype):
    form, h, w, heads, width = case
    measure = checks.kernels(
        "retention", form=form, size=(h, w), batch=2, heads=heads, width=width, dtype=dtype,
        repeats=1,
    )  # fmt: skip
    ((_, found),) = measure()
    assert found["ok"], found["errors"]
    assert (found["triton_calls"] > 0) == has_kernels(gpu)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_equals_the_original_with_exact_products(gpu, family):
    ((_, found),) = checks.goldens(f"{family}_tiny")()
    assert found["ok"], found["errors"]


def three_steps(family: str, device: jax.Device) -> tuple[Any, Any]:
    """Train the family's toy model, whose heads have the widths of the kernels, in bfloat16."""
    model = ModelConfig(variant=toy.NAME, dtype="bfloat16")
    choose_family(model, family)
    graph, params, batch_stats = build(model, 19, seed=0, platform=platform_of([device]))
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-3), 10, FAMILIES[family])
    step = make_train_step(graph, optimizer, TrainConfig(), data_mesh())
    rng, size = np.random.default_rng(0), SIZES[family]
    batch = {
        "image": jnp.asarray(rng.standard_normal((2, *size, 3), np.float32)),
        "label": jnp.asarray(rng.integers(0, 19, (2, *size), np.uint8)),
        "index": jnp.arange(2, dtype=jnp.int32),
    }
    state, losses = new_state(params, batch_stats, optimizer), []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@pytest.mark.parametrize("family", SIZES)
def test_a_bfloat16_training_step_is_finite_and_gives_the_same_bits_again(gpu, family, toys):
    (state, losses), (again, _) = three_steps(family, gpu), three_steps(family, gpu)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    for first, second in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(first, second)
