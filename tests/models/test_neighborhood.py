"""Neighborhood attention: the formulas against loops over pixels, tiles against the formulas."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.models.kernels import Platform
from segret_jax.models.neighborhood.attention import fast_neighborhood_attention
from segret_jax.models.neighborhood.formulas import neighborhood_attention
from tests.models.test_layers import noise
from tests.models.test_retention import equations, size

ON_CPU = functools.partial(fast_neighborhood_attention, platform=Platform(is_cpu=True))
# Height, width, side of the window; the true size if the arrays are padded.
CASES = [
    ((7, 7), 7, None),  # the window is the image
    ((9, 7), 7, None),
    ((12, 11), 9, None),  # fewer pixels than a tile of keys
    ((20, 33), 11, None),  # tiles at the borders and within
    ((16, 16), 7, (9, 8)),  # a tile of queries that is padding
    ((24, 40), 7, (17, 33)),
]


def arrays(shape: tuple[int, int], window: int, **options: Any) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    heads, width = options.get("heads", 2), options.get("width", 4)
    shapes = [(2, *shape, heads, width)] * 3 + [(heads, 2 * window - 1, 2 * window - 1)]
    return tuple(jnp.asarray(rng.standard_normal(s), options.get("dtype")) for s in shapes)


def by_loops(q: Any, k: Any, v: Any, bias: Any, true: tuple[int, int]) -> np.ndarray:
    """The definition, one query at a time; NATTEN's window at the borders."""
    window, out = (bias.shape[-1] + 1) // 2, np.zeros(q.shape)

    def keys(i: int, length: int) -> range:
        start = min(max(i - window // 2, 0), length - window)
        return range(start, start + window)

    for b, i, j, n in np.ndindex(len(q), *true, q.shape[3]):
        pixels = [(y, x) for y in keys(i, true[0]) for x in keys(j, true[1])]
        logits = np.array(
            [
                q[b, i, j, n] @ k[b, y, x, n] + bias[n, y - i + window - 1, x - j + window - 1]
                for y, x in pixels
            ]
        )
        weights = np.exp(logits - logits.max())
        values = np.array([v[b, y, x, n] for y, x in pixels])
        out[b, i, j, n] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("form", [neighborhood_attention, ON_CPU])
@pytest.mark.parametrize(("shape", "window", "true"), CASES, ids=str)
def test_equals_the_loop(form, shape, window, true):
    given = arrays(shape, window, dtype=jnp.float32)
    height, width = true or shape
    found = jax.jit(form)(*given, size=true)[:, :height, :width]
    expected = by_loops(*map(np.float64, given), true or shape)[:, :height, :width]
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("form", [neighborhood_attention, ON_CPU])
def test_an_array_smaller_than_a_window_is_refused(form):
    with pytest.raises(ValueError, match="the map is 9x6, but windows have 7x7 pixels"):
        form(*arrays((9, 6), 7))


@pytest.mark.parametrize(("shape", "window", "true"), CASES, ids=str)
def test_tiles_equal_the_formulas_with_all_gradients_in_float64(shape, window, true):
    with jax.enable_x64(True):
        given = arrays(shape, window, dtype=jnp.float64)
        height, width = true or shape
        grad = jnp.sin(jnp.arange(given[0].size, dtype=jnp.float64)).reshape(given[0].shape)
        grad = jnp.zeros_like(grad).at[:, :height, :width].set(grad[:, :height, :width])

        @functools.partial(jax.jit, static_argnums=0)
        def run(form: Any, true: Any, given: Any) -> list[jax.Array]:
            out, pull = jax.vjp(lambda *args: form(*args, size=true), *given)
            return [out[:, :height, :width], *pull(grad)]

        forms = neighborhood_attention, ON_CPU
        expected, found = (run(form, true, given) for form in forms)
        for tiles, plain in zip(found, expected, strict=True):
            np.testing.assert_allclose(tiles, plain, atol=1e-12 * np.abs(plain).max())


def test_gradients_of_bfloat16_are_near_those_of_float32():
    given = arrays((20, 13), 7, dtype=jnp.bfloat16)

    def grads(form: Any, *args: jax.Array) -> Any:
        def total(*args: jax.Array) -> jax.Array:
            return jnp.sin(form(*args).astype(jnp.float32)).sum()

        return jax.jit(jax.grad(total, range(4)))(*args)

    exact = grads(neighborhood_attention, *(t.astype(jnp.float32) for t in given))
    for found, expected in zip(grads(fast_neighborhood_attention, *given), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.abs(found.astype(jnp.float32) - expected).max()
        assert error < 0.03 * np.abs(expected).max()  # bfloat16 has 8 bits


def test_the_output_has_the_dtype_of_the_values():
    q, k, v = (jnp.asarray(noise(1, 9, 8, 2, 4, seed=s)) for s in range(3))
    bias = jnp.zeros((2, 13, 13))
    found = ON_CPU(q, k, v.astype(jnp.bfloat16), bias)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), ON_CPU(q, k, v, bias), atol=0.02)


def test_no_array_has_the_logits_of_all_pixels():
    """Neither in a step nor kept for its backward pass; the formulas show that the test sees it."""
    side, window, heads = 64, 11, 2
    given = arrays((side, side), window, heads=heads, width=8)
    logits = 2 * side**2 * heads * window**2

    def largest(form: Any) -> int:
        step = jax.grad(lambda *args: form(*args).sum(), range(4))
        return max(map(size, equations(jax.make_jaxpr(step)(*given).jaxpr, "cpu")))

    assert largest(neighborhood_attention) >= logits
    assert largest(fast_neighborhood_attention) < logits / 2
    _, pull = jax.vjp(fast_neighborhood_attention, *given)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
    assert kept <= sum(map(np.size, given)) + given[0].size + math.prod((2, side, side, heads)) + 2
