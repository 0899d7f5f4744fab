"""The selective scan's kernels on the device itself."""

import jax
import numpy as np
import pytest

from segret_jax.models.selective_scan import gpu as kernels
from tests.models.test_selective_scan_kernels import (
    exact,
    padded_noise,
    relative_errors,
    run,
    scan_inputs,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 128, 128, 32, 2), (128, 128)),
        ((2, 64, 64, 64, 4), (61, 50)),  # padded
        ((1, 33, 32, 144, 9), (33, 32)),
        ((1, 7, 9, 672, 42), (7, 9)),
        ((1, 256, 512, 32, 2), (256, 512)),
    ],
    ids=str,
)
def test_compiled_kernels_equal_the_formulas_and_give_the_same_bits_again(gpu, shape, size, dtype):
    arrays, y_grad = scan_inputs(*shape, dtype), padded_noise(shape, size)
    if not kernels.fits(*arrays[:2], float(gpu.compute_capability)):
        pytest.skip("needs compute capability 8.0")
    with jax.default_device(jax.devices("cpu")[0]):  # which compiles the formulas faster
        y, grads = exact(arrays, size, y_grad)
    found, found_grads = run(kernels, arrays, size, y_grad, interpret=False)
    inside = np.s_[:, : size[0], : size[1]]
    assert max(relative_errors(found[inside], y[inside])) < 1e-5
    of_x, *of_others = relative_errors(found_grads, grads)
    assert of_x < (1e-5 if dtype == "float32" else 4e-3)
    assert max(of_others) < 1e-5
    again = run(kernels, arrays, size, y_grad, interpret=False)
    for first, second in zip(*map(jax.tree.leaves, ((found, found_grads), again)), strict=True):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
