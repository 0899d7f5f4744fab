"""The compiled kernels of neighborhood attention against its formulas in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.models.neighborhood import gpu as kernels
from tests.models.test_neighborhood_kernels import by_formulas, by_kernels, inputs

pytestmark = pytest.mark.gpu


def exact(args: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Compute the formulas in float64 on the host, which compiles them faster."""
    with jax.default_device(jax.devices("cpu")[0]):
        return by_formulas(args, size)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("shape", "window"),
    [((4, 33, 50, 2, 32), 11), ((2, 16, 16, 4, 36), 9), ((3, 7, 9, 5, 20), 7)],
    ids=str,
)
def test_equals_the_formulas_with_all_gradients_and_repeats(gpu, shape, window, dtype, bound):
    args, size = inputs(shape, window, dtype), shape[1:3]
    if not kernels.fits(args[0], args[3], float(gpu.compute_capability)):
        pytest.skip("needs compute capability 8.0")
    found, again = (by_kernels(kernels, args, size, interpret=False) for _ in range(2))
    for ours, same, expected in zip(found, again, exact(args, size), strict=True):
        assert np.array_equal(ours, same)
        error = np.linalg.norm(np.asarray(jnp.asarray(ours, jnp.float32)) - expected)
        assert error < bound * np.linalg.norm(expected)


def test_tf32_is_near(gpu: jax.Device):
    shape, window = (2, 20, 21, 1, 32), 11
    args = inputs(shape, window)
    found = by_kernels(kernels, args, shape[1:3], interpret=False, full_precision=False)
    for ours, expected in zip(found, exact(args, shape[1:3]), strict=True):
        assert np.linalg.norm(ours - expected) < 3e-3 * np.linalg.norm(expected)
