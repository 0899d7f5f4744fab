"""Each layer against a few lines of NumPy, at the points where it differs from Flax's default."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from segret_jax.models.kernels import ANY_PLATFORM, Platform
from segret_jax.models.layers import (
    BatchNorm,
    LayerNorm,
    SampleKeys,
    channel_dropout,
    conv3x3,
    depthwise_conv,
    drop_path,
    gelu,
    normal_init,
    resize_bilinear,
    silu,
    uniform_init,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sample_keys(seed: int, count: int) -> SampleKeys:
    return SampleKeys(jax.random.key(seed), jnp.arange(count))


def scaled_batch_norm() -> BatchNorm:
    norm = BatchNorm(3, dtype=jnp.float32)
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.0, -1.0, 3.0])
    return norm


def test_batch_norm_normalizes_by_the_biased_and_keeps_the_unbiased_variance():
    norm, x = scaled_batch_norm(), 2 + 3 * noise(2, 1, 2, 3)  # 4 values: n/(n − 1) is 1.33
    flat = x.reshape(-1, 3).astype(np.float64)
    mean, biased, unbiased = flat.mean(0), flat.var(0), flat.var(0, ddof=1)
    expected = (x - mean) / np.sqrt(biased + 1e-5) * [1, 2, 0.5] + [0, -1, 3]
    np.testing.assert_allclose(norm(jnp.asarray(x), train=True), expected, atol=2e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * unbiased, rtol=1e-5)
    norm(jnp.asarray(x), train=True)
    np.testing.assert_allclose(norm.mean[...], 0.19 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.81 + 0.19 * unbiased, rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_running_statistics_and_leaves_them():
    norm, x = scaled_batch_norm(), noise(2, 3, 3)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 0.0, -2.0]), jnp.array([4.0, 0.25, 1e-5])
    expected = (x - [1, 0, -2]) / np.sqrt(np.array([4, 0.25, 1e-5]) + 1e-5) * [1, 2, 0.5]
    expected += [0, -1, 3]
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], jnp.array([1.0, 0.0, -2.0]))
    np.testing.assert_array_equal(norm.var[...], jnp.array([4.0, 0.25, 1e-5]))


def test_batch_norm_of_bfloat16_keeps_float32_statistics():
    norm, x = BatchNorm(1, dtype=jnp.bfloat16), jnp.full((1, 64, 64, 1), 3.140625, jnp.bfloat16)
    x = x.at[0, 0, 0, 0].set(5)  # bfloat16 sums of 4096 values would be far off
    y = norm(x, train=True)
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact.var(ddof=1), rtol=1e-6)


def test_no_gradient_flows_into_the_running_statistics():
    def running(x: jax.Array) -> jax.Array:
        norm = BatchNorm(2, dtype=jnp.float32)
        norm(x, train=True)
        return jnp.sum(norm.mean[...] + norm.var[...])

    np.testing.assert_array_equal(jax.grad(running)(jnp.asarray(noise(4, 2))), 0)


@pytest.mark.parametrize("size", [(5, 7), (6, 8), (6, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv3x3_pads_both_sides_as_the_loop_does(size, stride):
    (h, w), x = size, noise(2, *size, 3)
    conv = conv3x3(3, 2, stride=stride, dtype=jnp.float32, rngs=nnx.Rngs(0))
    kernel, bias = np.asarray(conv.kernel[...], np.float64), np.asarray(conv.bias[...])
    padded = np.zeros((2, h + 2, w + 2, 3))
    padded[:, 1:-1, 1:-1] = x
    expected = np.zeros((2, math.ceil(h / stride), math.ceil(w / stride), 2))
    for i, j in np.ndindex(*expected.shape[1:3]):
        window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
        expected[:, i, j] = np.einsum("bijc,ijcd->bd", window, kernel) + bias
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, atol=1e-5)
    same = lax.conv(
        *(
            t.transpose(axes)
            for t, axes in ((jnp.asarray(x), (0, 3, 1, 2)), (conv.kernel[...], (3, 2, 0, 1)))
        ),
        (stride,) * 2,
        "SAME",
    )
    differs = (
        np.abs(np.asarray(same).transpose(0, 2, 3, 1) + np.asarray(bias) - expected).max() > 0.1
    )
    assert differs == (stride == 2 and (h % 2 == 0 or w % 2 == 0))  # SAME is wrong at even sizes


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 241)
    expected = [0.5 * t * (1 + math.erf(t / math.sqrt(2))) for t in x]
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_gelu_has_the_gradient_of_its_formula():
    with jax.enable_x64(True):
        x = jnp.linspace(-6, 6, 241)
        expected = jax.vmap(jax.grad(lambda x: 0.5 * x * (1 + lax.erf(x / math.sqrt(2)))))(x)
        np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), expected, rtol=0, atol=1e-14)


def test_folding_batch_norm_into_a_layer_preserves_the_output():
    norm, x = scaled_batch_norm(), noise(5, 4)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 0.0, -2.0]), jnp.array([4.0, 0.25, 1e-5])
    kernel, bias = (jnp.asarray(noise(*shape, seed=1)) for shape in [(4, 3), (3,)])
    folded_kernel, folded_bias = norm.fold(kernel, bias)
    expected = norm(x @ kernel + bias[None])
    np.testing.assert_allclose(
        x @ folded_kernel + folded_bias[None], expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("in_one_call", [False, True])
def test_layer_norm_divides_by_the_variance_plus_1e_minus_6(in_one_call):
    layer = LayerNorm(4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm = functools.partial(layer, in_one_call=in_one_call)
    x = 1e-3 * noise(3, 4)  # variance about as small as ε
    mean, var = x.mean(-1, keepdims=True, dtype=float), x.var(-1, keepdims=True, dtype=float)
    np.testing.assert_allclose(
        norm(jnp.asarray(x)), (x - mean) / np.sqrt(var + 1e-6), rtol=1e-4, atol=1e-5
    )
    x = 1000 + noise(3, 4)  # where E[x²] − E[x]² would cancel
    expected = (x - x.mean(-1, keepdims=True, dtype=float)) / x.std(-1, keepdims=True, dtype=float)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "of_input", "tolerance"),
    [
        (jnp.float32, jnp.float32, 5e-6),
        (jnp.bfloat16, jnp.bfloat16, 2e-2),
        (jnp.bfloat16, jnp.float32, 2e-2),  # such as after a scan: rounded first
    ],
)
def test_layer_norm_in_one_call_computes_the_same_with_its_gradients(dtype, of_input, tolerance):
    norm = LayerNorm(144, dtype=dtype, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.asarray(noise(2, 144))
    graph, params = nnx.split(norm)
    x, toward = jnp.asarray(noise(256, 144), of_input), jnp.asarray(noise(256, 144, seed=1), dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def found(in_one_call: bool) -> Any:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, params)(x, in_one_call=in_one_call)

        result, pull = jax.vjp(apply, params, x)
        return result, pull(toward)

    def check(ours: jax.Array, expected: jax.Array) -> None:
        assert ours.dtype == expected.dtype
        ours, expected = np.asarray(ours, float), np.asarray(expected, float)
        np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())

    jax.tree.map(check, found(True), found(False))


def test_layer_norm_in_one_call_is_one_call_of_the_library():
    """With 256 rows: too few for the library, if XLA computed with one number per row."""
    graph, params = nnx.split(LayerNorm(144, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    network = jax.jit(lambda params, x: nnx.merge(graph, params)(x, in_one_call=True))
    program = network.lower(params, jnp.zeros((256, 144))).compile().as_text()
    operations = re.findall(r"= \S+ ([a-z-]+)\(", program[program.index("ENTRY") :])
    assert [name for name in operations if name != "parameter"] == ["fusion"]
    assert "__ynn_fusion" in program


def grouped(x: Any, kernel: Any) -> jax.Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel[:, :, None, :], (1, 1), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
    )  # fmt: skip


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("image", [(7, 5), (6, 9), (1, 2)])
def test_depthwise_conv_and_its_gradients_equal_the_grouped_convolution(size, image, residual):
    x, kernel = jnp.asarray(noise(2, *image, 3)), jnp.asarray(noise(size, size, 3, seed=1))
    toward = jnp.asarray(noise(2, *image, 3, seed=2))
    ours, pull = jax.vjp(functools.partial(depthwise_conv, residual=residual), x, kernel)
    theirs, pull_theirs = jax.vjp(lambda x, k: grouped(x, k) + residual * x, x, kernel)
    for a, b in zip((ours, *pull(toward)), (theirs, *pull_theirs(toward)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_depthwise_conv_in_bfloat16():
    x, kernel = noise(2, 8, 8, 3), noise(3, 3, 3, seed=1)
    narrow = [jnp.asarray(t, jnp.bfloat16) for t in (x, kernel)]
    out, pull = jax.vjp(depthwise_conv, *narrow)
    expected, pull_expected = jax.vjp(grouped, *(t.astype(jnp.float32) for t in narrow))
    grads, expected_grads = pull(out), pull_expected(out.astype(jnp.float32))
    for a, b in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
        assert error < 0.02


def bilinear(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel centers, edges clamped, two neighbors per axis whatever the scale."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high, t = np.minimum(low + 1, old - 1), at - low
        t = t.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = (1 - t) * x.take(low, axis) + t * x.take(high, axis)
    return x


@pytest.mark.parametrize("size", [(3, 4), (4, 2), (23, 31), (12, 5), (8, 11)])
def test_resize_has_half_pixel_centers_and_no_antialiasing(size):
    x = noise(2, 8, 11, 3)
    np.testing.assert_allclose(resize_bilinear(jnp.asarray(x), size), bilinear(x, size), atol=1e-5)


@pytest.mark.parametrize(
    ("drop", "axes"), [(drop_path, (1, 2, 3)), (channel_dropout, (1, 2))], ids=["path", "channel"]
)
def test_drop_path_and_channel_dropout_drop_at_the_rate_and_rescale(drop, axes):
    x = jnp.ones((4000, 2, 2, 3)) * jnp.array([1.0, 2.0, -3.0])[None, None, None]
    y = np.asarray(drop(x, 0.25, keys=sample_keys(0, 4000)) / x)
    units = y.mean(axes, keepdims=True)
    np.testing.assert_allclose(y, np.broadcast_to(units, y.shape), rtol=1e-6)
    kept = units != 0
    np.testing.assert_allclose(units[kept], 1 / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 4 * math.sqrt(0.25 * 0.75 / kept.size)
    assert kept.size == (4000 if drop is drop_path else 12000)
    assert abs(np.corrcoef(kept.ravel()[:-1], kept.ravel()[1:])[0, 1]) < 0.06
    again, other = (np.asarray(drop(x, 0.25, keys=sample_keys(s, 4000)) / x) for s in (0, 1))
    assert (again == y).all()
    assert (other != y).any()
    # A sample draws the same wherever it stands, and anew at each call.
    index = jnp.array([7, 3999, 0, *range(100, 120)])
    few = SampleKeys(jax.random.key(0), index)
    first, second = (np.asarray(drop(x[index], 0.25, keys=few) / x[index]) for _ in range(2))
    assert (first == y[np.asarray(index)]).all()
    assert (second != first).any()


@pytest.mark.parametrize("traced", [False, True])
def test_initializers_have_their_statistics(traced):
    """Both the NumPy draw and the one used while tracing."""

    def draw(init: Any, seed: int) -> np.ndarray:
        run = (
            jax.jit(lambda key: init(key, (300, 400))) if traced else lambda k: init(k, (300, 400))
        )
        return np.asarray(run(jax.random.key(seed)))

    for std in (0.02, 0.5):
        x = draw(normal_init(std), 0)
        assert x.std() == pytest.approx(std, rel=0.01)
        assert abs(x.mean()) < 0.01 * std
        assert np.abs(x).max() > 4 * std  # not cut
    x = draw(uniform_init(25), 0)
    assert 0.199 < np.abs(x).max() <= 0.2
    assert x.std() == pytest.approx(0.2 / math.sqrt(3), rel=0.01)
    assert (draw(uniform_init(25), 0) == x).all()
    assert (draw(uniform_init(25), 1) != x).mean() > 0.99


def test_the_precision_asked_for_reaches_the_depthwise_gradients():
    """They are traced after the context that sets it has ended."""

    def loss(x, kernel):
        with jax.default_matmul_precision("high"):
            return depthwise_conv(x, kernel).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    jaxpr = str(jax.make_jaxpr(gradient)(jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2))))
    convolutions = jaxpr.count("conv_general_dilated[")
    assert convolutions >= 3
    assert jaxpr.count("precision=(Precision.HIGH, Precision.HIGH)") == convolutions


@pytest.mark.parametrize("residual", [True, False])
def test_the_depthwise_convolution_for_cpus_is_that_of_all_platforms(residual):
    x, kernel = jnp.asarray(noise(2, 5, 7, 3)), jnp.asarray(noise(3, 3, 3, seed=1))

    def pull(platform):
        convolve = functools.partial(depthwise_conv, residual=residual, platform=platform)
        y, pull = jax.vjp(convolve, x, kernel)
        return y, *pull(jnp.cos(y))

    for a, b in zip(pull(Platform(is_cpu=True)), pull(ANY_PLATFORM), strict=True):
        np.testing.assert_array_equal(a, b)


def test_silu_is_jaxs_with_its_gradient():
    x = jnp.array([-1e4, -100.0, -90.0, -3.0, -0.5, 0.0, 0.7, 4.0, 100.0])
    (ours, pull), (theirs, pull_theirs) = (jax.vjp(f, x) for f in (silu, jax.nn.silu))
    for a, b in zip((ours, *pull(x)), (theirs, *pull_theirs(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-30)
