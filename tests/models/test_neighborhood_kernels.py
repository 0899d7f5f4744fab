"""The kernels of neighborhood attention, interpreted on CPU, against its formulas in float64."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.models.neighborhood import gpu, layout, tpu
from segret_jax.models.neighborhood.formulas import neighborhood_attention
from tests.models.test_kernels import lowered_for_cuda

Shape = tuple[int, int, int, int, int]
KERNELS = [pytest.param(gpu, id="gpu"), pytest.param(tpu, id="tpu")]
# b h w n d, the window's side, the true height and width
CASES = [
    ((2, 7, 7, 1, 8), 7, (7, 7)),  # one window for all
    ((2, 9, 7, 2, 24), 7, (9, 7)),
    ((2, 13, 9, 3, 36), 7, (13, 9)),
    ((2, 12, 11, 1, 8), 9, (12, 11)),
    ((1, 20, 33, 2, 8), 11, (20, 33)),
    ((2, 16, 16, 2, 8), 7, (9, 8)),
]


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small images have many blocks on a TPU, and a program on a GPU several of them."""
    monkeypatch.setattr(layout, "LANES", 8)
    monkeypatch.setattr(gpu, "MIN_PROGRAMS", 1)


def inputs(shape: Shape, window: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """Return q, k, v, the bias and the gradient of the output."""
    rng = np.random.default_rng(sum(shape))
    q, k, v, out_grad = (rng.standard_normal(shape, np.float32) for _ in range(4))
    bias = rng.standard_normal((shape[3], *[2 * window - 1] * 2), np.float32)
    q, k, v, out_grad = (jnp.asarray(t, dtype) for t in (q, k, v, out_grad))
    return q, k, v, jnp.asarray(bias), out_grad


def by_formulas(args: tuple[jax.Array, ...], size: tuple[int, int]) -> list[np.ndarray]:
    """Return the output, L and the gradients in float64 of the pixels within `size`."""
    with jax.enable_x64(True):
        q, k, v, bias, out_grad = (jnp.asarray(t, jnp.float64) for t in args)
        q, k, v, out_grad = (t[:, : size[0], : size[1]] for t in (q, k, v, out_grad))
        out, pull = jax.vjp(jax.jit(neighborhood_attention), q, k, v, bias)
        return [np.asarray(t) for t in (out, *pull(out_grad))]


def by_kernels(
    module: ModuleType,
    args: tuple[jax.Array, ...],
    size: tuple[int, int],
    *,
    full_precision: bool = True,
    interpret: bool = True,
) -> list[jax.Array]:
    """Return the output and the gradients; `size` is traced."""

    @jax.jit
    def run(args: tuple[jax.Array, ...], size: tuple[jax.Array, ...]) -> list[jax.Array]:
        *given, out_grad = args
        options = {"full_precision": full_precision, "interpret": interpret}
        out, log_total = module.forward(*given, size, **options)
        return [out, *module.backward(*given, size, out, log_total, out_grad, **options)]

    return run(args, size)


def _nan_beyond(size: tuple[int, int], x: jax.Array) -> jax.Array:
    return jnp.full_like(x, jnp.nan).at[:, : size[0], : size[1]].set(x[:, : size[0], : size[1]])


@pytest.mark.parametrize(("shape", "window", "size"), CASES, ids=str)
@pytest.mark.parametrize("module", KERNELS)
def test_equals_the_formulas_with_all_gradients(module, shape, window, size):
    args = inputs(shape, window)
    padded = tuple(_nan_beyond(size, t) if t.ndim == 5 else t for t in args)
    found = by_kernels(module, padded, size)
    for ours, expected in zip(found, by_formulas(args, size), strict=True):
        assert np.isfinite(ours).all()
        ours = ours[:, : size[0], : size[1]] if ours.shape == shape else ours
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("module", KERNELS)
def test_gradients_of_bfloat16_are_near_those_of_float64(module):
    shape, window, size = (2, 12, 17, 1, 24), 9, (12, 15)
    q, k, v, bias, out_grad = inputs(shape, window, jnp.bfloat16)
    args = q, k, v, bias + 100, out_grad  # e¹⁰⁰ is no float32
    found = by_kernels(module, args, size)
    assert [t.dtype for t in found] == [*[jnp.bfloat16] * 4, jnp.float32]
    for ours, expected in zip(found, by_formulas(args, size), strict=True):
        ours = ours[:, : size[0], : size[1]] if ours.shape == shape else ours
        error = np.abs(np.asarray(ours, np.float64) - expected).max()
        assert error < 0.01 * np.abs(expected).max()  # bfloat16 has 8 bits


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_triton_kernels_lower_at_the_sizes_of_a_model(dtype):
    def run(*args: jax.Array) -> list[jax.Array]:
        *given, out_grad = args
        size, options = (128, 128), {"full_precision": dtype == jnp.float32}
        out, log_total = gpu.forward(*given, size, **options)
        return [out, *gpu.backward(*given, size, out, log_total, out_grad, **options)]

    heads = jax.ShapeDtypeStruct((2, 128, 128, 2, 36), dtype)
    bias = jax.ShapeDtypeStruct((2, 21, 21), jnp.float32)
    text = lowered_for_cuda(jax.jit(run).trace(heads, heads, heads, bias, heads))
    assert text.count("__gpu$xla.gpu.triton") == 3


def test_old_gpus_wide_windows_and_float16_are_not_for_the_triton_kernels():
    def fits(dtype: Any = jnp.float32, window: int = 11, capability: float | None = 8.0) -> bool:
        q = jnp.zeros((1, 16, 16, 2, 32), dtype)
        return gpu.fits(q, jnp.zeros((2, *[2 * window - 1] * 2)), capability)

    assert fits()
    assert fits(jnp.bfloat16, capability=None)
    assert not fits(jnp.float16)
    assert not fits(window=13)
    assert not fits(capability=7.5)


def test_the_tpu_kernels_fit_the_maps_of_the_largest_images_and_no_float64(monkeypatch):
    monkeypatch.setattr(layout, "LANES", 128)
    bias = jnp.zeros((1, 21, 21))

    def fits(h: int, w: int, dtype: Any = jnp.float32) -> bool:
        return tpu.fits(jnp.zeros((1, h, w, 1, 8), dtype), bias)

    assert fits(256, 512)
    assert fits(7, 7, jnp.bfloat16)
    assert not fits(64, 1024)
    assert not fits(7, 7, jnp.float16)
