"""The selective scan: the formulas against loops over tokens, chunks against the formulas."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.models.kernels import Platform
from segret_jax.models.selective_scan.formulas import ScanWeights, selective_scan_2d
from segret_jax.models.selective_scan.scan import fast_selective_scan_2d

ON_CPU = functools.partial(fast_selective_scan_2d, platform=Platform(is_cpu=True))
# Batch, height, width, channels, rank; the true size if the arrays are padded.
CASES = [
    ((2, 5, 7, 6, 2), None),
    ((1, 17, 3, 4, 1), None),
    ((1, 1, 9, 4, 1), None),
    ((2, 8, 8, 4, 2), (5, 6)),
]


def arrays(shape: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[Any, ...]:
    b, h, w, c, r = shape
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), dtype)

    weights = ScanWeights(
        dt_kernel=normal(4, r, c, scale=r**-0.5),
        dt_bias=normal(4, c) - 3,
        a_log=normal(4, c, scale=0.3),
        skip=normal(4, c),
    )
    return normal(b, h, w, c), normal(b, h, w, 4, r + 2), weights


def by_loops(x: np.ndarray, projections: np.ndarray, weights: ScanWeights) -> np.ndarray:
    """The recurrence of one image, one token after the other."""
    h, w, _ = x.shape
    rows = list(np.ndindex(h, w))
    columns = [(i, j) for j in range(w) for i in range(h)]
    out = np.zeros_like(x)
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        state = np.zeros(x.shape[-1])
        for pixel in order:
            p, (*dt, b, c) = x[pixel], projections[pixel][k]
            delta = np.log1p(np.exp(dt @ weights.dt_kernel[k] + weights.dt_bias[k]))
            state = np.exp(-np.exp(weights.a_log[k]) * delta) * state + delta * b * p
            out[pixel] += c * state + weights.skip[k] * p
    return out


@pytest.mark.parametrize("form", [selective_scan_2d, ON_CPU])
@pytest.mark.parametrize(("shape", "true"), CASES, ids=str)
def test_equals_the_loop(form, shape, true):
    x, projections, weights = arrays(shape)
    height, width = true or shape[1:3]
    found = jax.jit(form)(x, projections, weights, size=true)[:, :height, :width]
    x, projections = (np.float64(t)[:, :height, :width] for t in (x, projections))
    weights = ScanWeights(*map(np.float64, weights))
    expected = [by_loops(*image, weights) for image in zip(x, projections, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("shape", "true"), CASES, ids=str)
def test_chunks_equal_the_formulas_with_all_gradients_in_float64(shape, true):
    with jax.enable_x64(True):
        given = arrays(shape, jnp.float64)
        height, width = true or shape[1:3]
        grad = jnp.sin(jnp.arange(given[0].size, dtype=jnp.float64)).reshape(given[0].shape)
        grad = jnp.zeros_like(grad).at[:, :height, :width].set(grad[:, :height, :width])

        @functools.partial(jax.jit, static_argnums=0)
        def run(form: Any, true: Any, given: Any) -> list[jax.Array]:
            out, pull = jax.vjp(lambda *args: form(*args, size=true), *given)
            return [out[:, :height, :width], *jax.tree.leaves(pull(grad))]

        forms = selective_scan_2d, ON_CPU
        expected, found = (run(form, true, given) for form in forms)
        for chunks, plain in zip(found, expected, strict=True):
            np.testing.assert_allclose(chunks, plain, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("form", [selective_scan_2d, fast_selective_scan_2d])
def test_sixteen_bits_are_scanned_in_float32(form):
    x, projections, weights = arrays((1, 6, 7, 4, 2))
    x = x.astype(jnp.bfloat16)
    form = jax.jit(form)
    found = form(x, projections, weights)
    assert found.dtype == jnp.float32
    expected = form(x.astype(jnp.float32), projections, weights)
    np.testing.assert_array_equal(found, expected)
    grad = jax.grad(lambda x: form(x, projections, weights).sum())(x)
    assert grad.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("shift", "bound"),
    [(4, 1e-5), (-7, 2e-5)],
    ids=["forgotten within tokens", "remembered for rows"],
)
def test_long_sequences_stay_exact(shift: float, bound: float):
    """A whole 1024×2048 image at stride 4; the states alone, without the skip connection."""
    shape = (1, 256, 512, 2, 1)
    x, projections, weights = arrays(shape)
    weights = weights._replace(dt_bias=weights.dt_bias + shift, skip=jnp.zeros_like(weights.skip))
    found = jax.jit(ON_CPU)(x, projections, weights)
    expected = by_loops(
        np.float64(x[0]), np.float64(projections[0]), ScanWeights(*map(np.float64, weights))
    )
    assert np.abs(found[0] - expected).max() < bound * np.sqrt(np.mean(expected**2))


def test_no_direction_scans_a_flipped_copy():
    """On any platform; the formulas flip, which shows that such a copy would be seen."""
    given = arrays((1, 16, 24, 4, 2))

    def flips(form: Any) -> int:
        gradient = jax.grad(lambda *args: form(*args).sum(), argnums=(0, 1, 2))
        return sum(str(jax.make_jaxpr(f)(*given)).count(" rev[") for f in (form, gradient))

    assert flips(ON_CPU) == flips(fast_selective_scan_2d) == 0
    assert flips(selective_scan_2d) > 0


@pytest.mark.parametrize("form", [ON_CPU, fast_selective_scan_2d])
def test_no_state_of_a_step_is_kept_for_the_backward_pass(form):
    """On CPU those at the borders of rows and columns, elsewhere those between 16 steps."""
    given = arrays((1, 64, 96, 4, 2))
    _, pull = jax.vjp(form, *given)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
    states = 2 * (64 + 96) * 4 if form is ON_CPU else 4 * 64 * 96 * 4 // 16
    assert kept <= sum(map(np.size, jax.tree.leaves(given))) + states + 2


def test_the_choice_of_kernels_computes_the_same_on_a_cpu():
    given = arrays((2, 9, 7, 4, 2))

    def grads(form: Any) -> Any:
        return jax.jit(jax.grad(lambda args: jnp.sin(form(*args)).sum()))(given)

    pairs = zip(*(jax.tree.leaves(grads(f)) for f in (fast_selective_scan_2d, ON_CPU)), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
