"""The selective scan's kernels, interpreted, against the formulas in float64, and compiled."""

import functools
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.models.selective_scan import gpu, tpu
from segret_jax.models.selective_scan.formulas import ScanWeights, selective_scan_2d
from segret_jax.models.selective_scan.gpu_states import first_states
from tests.conftest import slow
from tests.models.test_layers import noise

Size = tuple[int, int]


def scan_inputs(b: int, h: int, w: int, c: int, rank: int, dtype: str = "float32") -> Any:
    """Return tokens, projections and weights, for which the state remembers many steps."""
    weights = ScanWeights(
        noise(4, rank, c, seed=2) / np.float32(np.sqrt(rank)),
        noise(4, c, seed=3) - 3, 0.3 * noise(4, c, seed=4), noise(4, c, seed=5),
    )  # fmt: skip
    x = jnp.asarray(noise(b, h, w, c), dtype)
    return jax.tree.map(jnp.asarray, (x, noise(b, h, w, 4, rank + 2, seed=1), weights))


def exact(arrays: Any, size: Size, y_grad: np.ndarray) -> Any:
    """Return the output and all gradients of the formulas in float64."""
    arrays = jax.tree.map(lambda t: np.asarray(t.astype(jnp.float32), np.float64), arrays)

    @jax.jit
    def both(arrays: Any, y_grad: Any) -> Any:
        y, pullback = jax.vjp(functools.partial(selective_scan_2d, size=size), *arrays)
        return y, pullback(y_grad)

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, both(arrays, np.float64(y_grad)))


def relative_errors(found: Any, expected: Any) -> list[float]:
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return [float(np.abs(np.float64(f) - e).max() / np.abs(e).max()) for f, e in pairs]


@pytest.mark.parametrize("module", [gpu, tpu], ids=["gpu", "tpu"])
@pytest.mark.parametrize(
    "case",  # b h w c and the rank, the true size, the tokens' dtype
    [
        ((1, 17, 19, 36, 3), (17, 19), "float32"),  # more than a tile, a chunk, a block of channels
        *slow(
            ((2, 8, 8, 6, 17), (5, 6), "bfloat16"),  # padded
            ((2, 5, 7, 6, 2), (5, 7), "float32"),
            ((1, 17, 3, 6, 2), (17, 3), "float32"),
            ((1, 1, 9, 6, 2), (1, 9), "float32"),
        ),
    ],
    ids=str,
)
def test_kernels_equal_the_formulas_with_their_gradients(module, case):
    shape, size, dtype = case
    arrays, y_grad = scan_inputs(*shape, dtype), padded_noise(shape, size)
    y, grads = exact(arrays, size, y_grad)
    assert module.fits(*arrays[:2])
    found, found_grads = run(module, arrays, size, y_grad)
    inside = np.s_[:, : size[0], : size[1]]
    assert found.dtype == jnp.float32
    assert max(relative_errors(found[inside], y[inside])) < 1e-6
    x_grad, *others = jax.tree.leaves(found_grads)
    assert x_grad.dtype == dtype
    assert {t.dtype.name for t in others} == {"float32"}
    of_x, *of_others = relative_errors(found_grads, grads)
    assert of_x < (1e-6 if dtype == "float32" else 4e-3)
    assert max(of_others) < 2e-6
    assert np.isfinite(np.asarray(found)).all()  # the padding, too: it may reach a sum as 0 times


def padded_noise(shape: tuple[int, ...], size: Size) -> np.ndarray:
    x = np.zeros(shape[:4], np.float32)
    x[:, : size[0], : size[1]] = noise(shape[0], *size, shape[3], seed=6)
    return x


def run(
    module: ModuleType, arrays: Any, size: Size, y_grad: np.ndarray, *, interpret: bool = True
) -> Any:
    """Return the output and all gradients."""

    @jax.jit
    def both(arrays: Any, height: Any, width: Any, y_grad: Any) -> Any:
        size = height, width
        y, carries = module.forward(*arrays, size, interpret=interpret)
        return y, module.backward(*arrays, size, carries, y_grad, interpret=interpret)

    return both(arrays, *size, y_grad)


@pytest.mark.parametrize("adjoint", [False, True])
def test_the_states_before_chunks_compose_all_chunks_before(adjoint):
    decay, last = np.abs(noise(4, 1, 200, 3)) / 2, noise(4, 1, 200, 3, seed=1)
    found = first_states((jnp.asarray(decay), jnp.asarray(last)), adjoint=adjoint, interpret=True)
    for direction in range(4):
        order = slice(None, None, -1 if (direction > 1) != adjoint else 1)
        state, expected = np.zeros(3), []
        for a, end in zip(decay[direction, 0][order], last[direction, 0][order], strict=True):
            expected.append(state)
            state = a * state + end
        np.testing.assert_allclose(found[direction, 0][order], expected, atol=1e-5)


def test_kernels_for_tpus_refuse_what_they_do_not_support():
    x, projections, _ = scan_inputs(1, 2, 2, 6, 2)
    assert not tpu.fits(x.astype(jnp.float16), projections)
    assert not tpu.fits(x, projections.astype(jnp.bfloat16))
    assert not tpu.fits(jnp.zeros((1, 2, 2, 2049)), projections)


def test_kernels_for_gpus_refuse_what_they_do_not_support():
    x, projections, _ = scan_inputs(1, 2, 2, 6, 2)
    assert gpu.fits(x, projections, 8.0)
    assert not gpu.fits(x, projections, 7.5)
    assert not gpu.fits(x.astype(jnp.float16), projections)
    assert not gpu.fits(x, projections.astype(jnp.bfloat16))
    assert not gpu.fits(x, jnp.zeros((1, 2, 2, 4, 64)))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 128, 128, 32, 2), "bfloat16"),
        ((1, 32, 32, 144, 9), "float32"),
        ((2, 16, 16, 384, 24), "float32"),
        ((1, 256, 512, 32, 2), "bfloat16"),
    ],
    ids=str,
)
def test_kernels_lower_for_gpus(shape, dtype):
    for traced in traced_passes(shape, dtype):
        try:
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        except RuntimeError as error:  # jax 0.11 asks for a GPU
            pytest.skip(str(error))
        assert text.count("triton") >= 3


def traced_passes(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """Trace the forward and the backward pass, whose carries are at the borders of chunks."""

    def arrays() -> Any:
        x, projections, weights = scan_inputs(*shape, dtype)
        return x, projections, weights, (jnp.int32(1), jnp.int32(1))

    inputs = jax.eval_shape(arrays)
    y, carries = jax.eval_shape(gpu.forward, *inputs)
    assert sum(t.size for t in jax.tree.leaves(carries)) <= 4 * math.prod(shape[:4]) / 16
    passes = jax.jit(gpu.forward), jax.jit(gpu.backward)
    return passes[0].trace(*inputs), passes[1].trace(*inputs, carries, y)
