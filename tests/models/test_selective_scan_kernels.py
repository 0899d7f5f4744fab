"""The selective scan's kernels for GPUs, interpreted, against the formulas in float64."""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.models.selective_scan import gpu
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


@pytest.mark.parametrize("module", [gpu], ids=["gpu"])
@pytest.mark.parametrize(
    "case",  # b h w c and the rank, the true size, the tokens' dtype
    [
        ((1, 17, 3, 36, 3), (17, 3), "float32"),  # more than a tile, more than a block of channels
        ((2, 8, 8, 6, 17), (5, 6), "bfloat16"),  # padded
        *slow(((2, 5, 7, 6, 2), (5, 7), "float32"), ((1, 1, 9, 6, 2), (1, 9), "float32")),
    ],
    ids=str,
)
def test_kernels_equal_the_formulas_with_their_gradients(module, case):
    shape, size, dtype = case
    arrays = scan_inputs(*shape, dtype)
    y_grad = np.zeros(shape[:4], np.float32)
    y_grad[:, : size[0], : size[1]] = noise(shape[0], *size, shape[3], seed=6)
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


def run(module: ModuleType, arrays: Any, size: Size, y_grad: np.ndarray) -> Any:
    @jax.jit
    def both(arrays: Any, height: Any, width: Any, y_grad: Any) -> Any:
        y, carries = module.forward(*arrays, (height, width), interpret=True)
        size = height, width
        return y, module.backward(*arrays, size, carries, y_grad, interpret=True)

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
    x, projections, weights = jax.eval_shape(lambda: scan_inputs(*shape, dtype))
    size, y = (jax.ShapeDtypeStruct((), jnp.int32),) * 2, jax.ShapeDtypeStruct(x.shape, jnp.float32)
    arrays = x, projections, weights, size
    _, states = jax.eval_shape(gpu.forward, *arrays)
    assert states.size <= 4 * x.size / 16
    for traced in (jax.jit(gpu.forward).trace(*arrays),
                   jax.jit(gpu.backward).trace(*arrays, states, y)):  # fmt: skip
        try:
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        except RuntimeError as error:  # jax 0.11 asks for a GPU
            pytest.skip(str(error))
        assert text.count("triton") >= 3
