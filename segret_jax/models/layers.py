"""Layers with PyTorch's arithmetic, where it differs from Flax's defaults.

Everything is NHWC. Each function or class here differs from the library's own in one stated way;
where Flax agrees with the released model (`nnx.Linear`), the models use Flax.
"""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform

FeatureMap = Float[Array, "b h w c"]
Rate = float | Float[Array, ""]  # a drop rate; an array in a scan over blocks
MapSize = tuple[int | Int[Array, ""], int | Int[Array, ""]]  # height and width of a feature map


def normal_init(std: float = 0.02) -> nnx.Initializer:
    """Return an initializer that draws from N(0, std²).

    Args:
        std: The standard deviation; 0.02 is that of most Linears.

    Returns:
        The initializer.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return draw(key, lambda rng: std * rng.standard_normal(shape, np.float32), shape, dtype)

    return init


def uniform_init(fan_in: int) -> nnx.Initializer:
    """Return PyTorch's initializer of convolutions: uniform in ±1/√fan_in, kernel and bias alike.

    For the kernel that is Kaiming uniform with a = √5.

    Args:
        fan_in: The number of inputs of an output: input channels times the kernel's positions.

    Returns:
        The initializer.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return draw(key, lambda rng: rng.uniform(-bound, bound, shape), shape, dtype)

    return init


def draw(
    key: Array,
    sample: Callable[[np.random.Generator], np.ndarray],
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> Array:
    """Draw initial weights with NumPy: XLA would compile a sampler for each shape, 8 s for tiny.

    Args:
        key: The seed.
        sample: Draws an array of `shape` from a generator.
        shape: The shape of the weights.
        dtype: The dtype of the weights.

    Returns:
        The weights. While tracing, as by `eval_shape`, a callback that draws the same ones.
    """

    def draw_on_host(seed: Any) -> np.ndarray:
        return sample(np.random.default_rng(np.asarray(seed).tolist())).astype(dtype)

    seed = jax.random.key_data(key)
    if isinstance(key, jax.core.Tracer):
        return jax.pure_callback(draw_on_host, jax.ShapeDtypeStruct(shape, dtype), seed)
    return jnp.asarray(draw_on_host(seed))


def conv3x3(
    in_channels: int,
    out_channels: int,
    *,
    stride: int = 1,
    use_bias: bool = True,
    init: nnx.Initializer | None = None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Build a 3×3 convolution, padded by 1 on *both* sides.

    XLA's `SAME` puts the odd pixel of a stride-2 convolution on one side only; PyTorch does not.
    A side of n pixels becomes ⌈n/stride⌉.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        stride: The stride along both axes.
        use_bias: Whether it has a bias.
        init: The initializer of the kernel; None: PyTorch's, of the bias too (`uniform_init`).
        dtype: The dtype of the computation; parameters are float32.
        rngs: The source of the initial weights.

    Returns:
        The layer.
    """
    default = uniform_init(9 * in_channels)
    return nnx.Conv(
        in_channels, out_channels, (3, 3), strides=stride, padding=((1, 1), (1, 1)),
        use_bias=use_bias, kernel_init=init or default, bias_init=default,
        dtype=dtype, rngs=rngs,
    )  # fmt: skip


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Apply the exact GELU, x·Φ(x); the tanh approximation is off by up to 5e-4.

    Its backward pass computes Φ again; autodiff would keep two more arrays of x's size.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return (grad * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Apply x·σ(x), as a quotient: XLA computes that once for all uses, not in each of them."""
    return x / (1 + jnp.exp(-x))


def _silu_backward(x: Array, grad: Array) -> tuple[Array]:
    sigmoid = jax.nn.sigmoid(x)
    return (grad * (sigmoid + x * sigmoid * (1 - sigmoid)),)


silu.defvjp(lambda x: (silu(x), x), _silu_backward)


def accum_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype of sums and statistics: float32, or float64 to check float32 by."""
    return jnp.promote_types(dtype, jnp.float32)


def per_channel(vector: Float[Array, " c"], ndim: int) -> Float[Array, "*ones c"]:
    """Return a vector over channels as an array of rank `ndim`."""
    return jnp.expand_dims(vector, tuple(range(ndim - 1)))


class LayerNorm(nnx.LayerNorm):
    """Layer norm over channels with ε = 1e-6 and the two-pass variance."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(channels, epsilon=1e-6, use_fast_variance=False, dtype=dtype, rngs=rngs)

    @jax.named_scope("norm")
    def __call__(  # type: ignore[override]
        self, x: Float[Array, "*batch c"], *, in_one_call: bool = False
    ) -> Float[Array, "*batch c"]:
        """Normalize over channels; `in_one_call`: by one call of XLA's library for CPUs."""
        return self._in_one_call(x) if in_one_call else super().__call__(x)

    def _in_one_call(self, x: Array) -> Array:
        """Normalize in a form that XLA makes one call of YNNPACK, seen with jaxlib 0.10.2.

        It hands a sum to that library with the operations around it, if each of them reads or
        writes at least 4,096 numbers.
        """

        def mean(x: Array) -> Array:
            total = jnp.broadcast_to(jnp.sum(x, -1, keepdims=True), x.shape)
            # Without the barrier XLA divides before it broadcasts: one number per row, too few.
            return lax.optimization_barrier(total) / x.shape[-1]

        assert self.scale is not None
        assert self.bias is not None
        # Rounded as by Flax; what follows is float32 or more.
        x, scale, bias = (p.astype(self.dtype) for p in (x, self.scale[...], self.bias[...]))
        x = x.astype(accum_dtype(x.dtype))
        x = x - mean(x)
        factor = lax.rsqrt(mean(x * x) + self.epsilon) * per_channel(scale, x.ndim)
        return (x * factor + per_channel(bias, x.ndim)).astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch norm whose running variance is the *unbiased* one, as PyTorch's.

    The batch is normalized by its biased variance; running ← 0.9·running + 0.1·batch. Under a
    `jit` whose batch is sharded over devices the means below are over the global batch, which is
    what SyncBN computes. Statistics are float32 whatever the compute dtype.
    """

    momentum = 0.1
    epsilon = 1e-5

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.dtype = dtype

    @jax.named_scope("norm")
    def __call__(
        self, x: Float[Array, "*batch c"], *, train: bool = False
    ) -> Float[Array, "*batch c"]:
        x = x.astype(accum_dtype(x.dtype))
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x, axes), jnp.var(x, axes)
            count = x.size // x.shape[-1]
            self._update(self.mean, mean)
            self._update(self.var, var * (count / max(count - 1, 1)))
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        mean, scale, bias = (per_channel(v, x.ndim) for v in (mean, scale, self.bias[...]))
        return ((x - mean) * scale + bias).astype(self.dtype)

    def fold(
        self, kernel: Float[Array, "*k c"], bias: Float[Array, " c"]
    ) -> tuple[Float[Array, "*k c"], Float[Array, " c"]]:
        """Fold this norm, as it is in evaluation, into the layer before it.

        Args:
            kernel: The kernel of that layer, its output channels last.
            bias: The bias of that layer.

        Returns:
            Kernel and bias of the one layer that equals that layer followed by this norm.
        """
        scale = self.scale[...] * lax.rsqrt(self.var[...] + self.epsilon)
        bias = (bias - self.mean[...]) * scale + self.bias[...]
        return kernel * per_channel(scale, kernel.ndim), bias

    def _update(self, running: nnx.BatchStat, batch: Float[Array, " c"]) -> None:
        batch = lax.stop_gradient(batch)
        running[...] = (1 - self.momentum) * running[...] + self.momentum * batch


def kernel_and_bias(
    layer: nnx.Linear | nnx.Conv,
) -> tuple[Float[Array, "*k c"], Float[Array, " c"]]:
    """Return kernel and bias of a layer that has both."""
    assert layer.bias is not None
    return layer.kernel[...], layer.bias[...]


class DepthwiseConv(nnx.Module):
    """A k×k convolution of each channel with its own kernel: bias, stride 1, zero padding."""

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        kernels: Kernels,
        platform: Platform,
        init: nnx.Initializer | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        default = uniform_init(size * size)
        kernel_init, bias_init = (init, nnx.initializers.zeros_init()) if init else (default,) * 2
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, channels)))
        self.bias = nnx.Param(bias_init(rngs.params(), (channels,)))
        self.kernels, self.platform, self.dtype = kernels, platform, dtype

    def __call__(self, x: FeatureMap, *, residual: bool = False) -> FeatureMap:
        """Return the convolved map; `residual` adds x."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernels is Kernels.REFERENCE:
            convolved = _by_groups(x, kernel, residual=residual)
        else:
            convolved = depthwise_conv(x, kernel, residual=residual, platform=self.platform)
        return convolved + per_channel(bias, 4)


def depthwise_conv(
    x: FeatureMap,
    kernel: Float[Array, "k k c"],
    *,
    residual: bool = False,
    platform: Platform = ANY_PLATFORM,
) -> FeatureMap:
    """Convolve each channel with its own odd-sized kernel, in the backend's fast form.

    On CPU that is a sum of k² shifted copies, which XLA fuses; its grouped convolution is 20×
    slower there. The gradients are written out, since those that autodiff makes of the shifts
    (a sum of k² padded copies) are 5× slower again.

    Args:
        x: The input, of any size.
        kernel: The kernel of each channel; k is odd.
        residual: Whether to add x. On CPU it is then read from the padded copy alone, so that what
            computes x is compiled for one use.
        platform: The devices (`kernels.platform_of`); if CPUs, no other form is traced.

    Returns:
        The output, of the input's shape; the input is padded with zeros.
    """
    # The backward pass is traced after the caller's precision context has ended: pass it along.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _depthwise(x, kernel, _Options(precision, residual, platform.is_cpu))


class _Options(NamedTuple):
    precision: str | None
    residual: bool
    is_cpu: bool

    def choose(self, arrays: tuple[Array, ...], *, cpu: Callable, default: Callable) -> Array:
        """Apply the function for the platform; only for CPUs it is known before compilation."""
        if self.is_cpu:
            return cpu(*arrays)
        return lax.platform_dependent(*arrays, cpu=cpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Array, kernel: Array, options: _Options) -> Array:
    return _depthwise_of_shape(x, kernel, options)


# Inlined into its caller, but traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _depthwise_of_shape(x: Array, kernel: Array, options: _Options) -> Array:
    by_shifts = functools.partial(_sum_of_shifts, residual=options.residual)
    by_groups = functools.partial(
        _by_groups, precision=options.precision, residual=options.residual
    )
    return options.choose((x, kernel), cpu=by_shifts, default=by_groups)


def _depthwise_forward(x: Array, kernel: Array, options: _Options) -> tuple[Array, Any]:
    return _depthwise(x, kernel, options), (x, kernel)


def _depthwise_backward(options: _Options, saved: Any, grad: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def kernel_grad_of_grouped_conv(x: Array, kernel: Array, grad: Array) -> Array:
        convolve = functools.partial(_grouped_conv, x, precision=options.precision)
        return jax.vjp(convolve, kernel)[1](grad)[0]

    kernel_grad = options.choose(
        (x, kernel, grad), cpu=_kernel_grad_by_shifts, default=kernel_grad_of_grouped_conv
    )
    return _depthwise(grad, kernel[::-1, ::-1], options), kernel_grad


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pad_for(x: Array, kernel: Array, *, rows_below: int = 0) -> Array:
    (b, h, w, c), pad = x.shape, kernel.shape[0] // 2
    # With 64 channels XLA takes five times as long to compile the padding of a rank-4 array.
    rows, columns = (pad, pad + rows_below), (pad * c, pad * c)
    x = jnp.pad(x.reshape(b, h, w * c), ((0, 0), rows, columns))
    return x.reshape(b, h + sum(rows), w + 2 * pad, c)


def _sum_of_shifts(x: Array, kernel: Array, *, residual: bool = False) -> Array:
    (b, h, w, c), size = x.shape, kernel.shape[0]
    middle = size // 2
    wide = w + 2 * middle
    # Rows are not cut until the end: shifts are along one axis, and XLA fuses the sum as a whole.
    x = _pad_for(x, kernel, rows_below=1).reshape(1, b, -1, c)
    # The weights are broadcast at once, and x has a first axis of 1: a shift is a slice and no
    # reshape, which is less to trace. XLA fuses all of it, and stores no broadcast weights.
    weights = jnp.broadcast_to(kernel.reshape(-1, 1, 1, c), (size * size, b, h * wide, c))

    def shifted(row: int, column: int) -> Array:
        start = row * wide + column
        return lax.slice_in_dim(x, start, start + h * wide, axis=2)

    products = [
        lax.mul(shifted(*divmod(i, size)), weight)
        for i, weight in enumerate(lax.split(weights, (1,) * size**2))
    ]
    if residual:
        products.append(shifted(middle, middle))
    return functools.reduce(lax.add, products).reshape(b, h, wide, c)[:, :, :w]


def _kernel_grad_by_shifts(x: Array, kernel: Array, grad: Array) -> Array:
    size, padded = kernel.shape[0], _pad_for(x, kernel)

    def grad_at(index: Array) -> Array:
        shifted = lax.dynamic_slice(padded, (0, index // size, index % size, 0), x.shape)
        return jnp.sum(shifted * grad, axis=(0, 1, 2), dtype=jnp.float32)

    grads = lax.map(grad_at, jnp.arange(size * size))
    return grads.reshape(kernel.shape).astype(kernel.dtype)


def _by_groups(
    x: Array, kernel: Array, *, precision: str | None = None, residual: bool = False
) -> Array:
    convolved = _grouped_conv(x, kernel, precision=precision)
    return x + convolved if residual else convolved


def _grouped_conv(x: Array, kernel: Array, *, precision: str | None = None) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel[:, :, None, :], (1, 1), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
        precision=precision,
    )  # fmt: skip


class SampleKeys:
    """Random keys of the samples of a training step.

    Each sample draws from its own key, made of the step's key and the sample's `index` in the
    global batch: the draws do not depend on how accumulation, devices and hosts split the batch.
    """

    def __init__(self, key: Array, index: Int[Array, " b"]):
        """Make a key for each sample.

        Args:
            key: The key of the training step.
            index: The samples' indices in the global batch.
        """
        self.keys = jax.vmap(functools.partial(jax.random.fold_in, key))(index)
        self.draws: int | Int[Array, ""] = 0

    def bernoulli(self, probability: Rate, shape: tuple[int, ...]) -> Bool[Array, "b *shape"]:
        """Draw for each sample, independent of earlier draws.

        Args:
            probability: The probability of True.
            shape: The shape of each sample's array.

        Returns:
            The samples' arrays, stacked.
        """
        keys = jax.vmap(lambda key: jax.random.fold_in(key, self.draws))(self.keys)
        self.draws += 1
        return jax.vmap(lambda key: jax.random.bernoulli(key, probability, shape))(keys)

    def reserve(self, users: int, draws: int) -> Int[Array, " users"]:
        """Reserve draws for users that draw by themselves, such as the blocks of a scan.

        Args:
            users: The number of users.
            draws: The number of draws of each.

        Returns:
            The number of draws before each user's first, for `at`.
        """
        first = self.draws + draws * jnp.arange(users)
        self.draws += users * draws
        return first

    def at(self, draws: int | Int[Array, ""]) -> "SampleKeys":
        """Return the same keys after `draws` draws, such as a number from `reserve`."""
        keys = copy.copy(self)
        keys.draws = draws
        return keys


def drop_path(x: FeatureMap, rate: Rate, *, keys: SampleKeys) -> FeatureMap:
    """Zero whole samples at random, and scale the others by 1/(1 − rate).

    Args:
        x: The output of a residual branch.
        rate: The probability that a sample is zeroed.
        keys: The random keys of the samples.

    Returns:
        The branch, to be added to its input.
    """
    return _drop(x, rate, (1, 1, 1), keys)


def channel_dropout(x: FeatureMap, rate: float, *, keys: SampleKeys) -> FeatureMap:
    """Zero whole channels of each sample at random, and scale the others by 1/(1 − rate).

    Args:
        x: The feature map.
        rate: The probability that a channel is zeroed.
        keys: The random keys of the samples.

    Returns:
        The feature map of the same shape.
    """
    return _drop(x, rate, (1, 1, x.shape[-1]), keys)


def _drop(x: Array, rate: Rate, shape: tuple[int, ...], keys: SampleKeys) -> Array:
    if not isinstance(rate, jax.Array) and rate == 0:
        return x
    return x * (keys.bernoulli(1 - rate, shape) / (1 - rate)).astype(x.dtype)


def resize_bilinear(x: FeatureMap, size: tuple[int, int]) -> Float[Array, "b new_h new_w c"]:
    """Resize with half-pixel centers and, unlike `jax.image.resize` alone, no antialiasing.

    Args:
        x: The feature map.
        size: The new height and width.

    Returns:
        The resized feature map.
    """
    shape = (x.shape[0], *size, x.shape[-1])
    return x if x.shape == shape else jax.image.resize(x, shape, "bilinear", antialias=False)


def resize_by_products(
    x: FeatureMap, size: tuple[Any, Any], *, true_sizes: tuple[MapSize, MapSize] | None = None
) -> Float[Array, "b new_h new_w c"]:
    """Resize as `resize_bilinear` does, by a product with a matrix for each of the two axes.

    Args:
        x: The feature map.
        size: The new height and width; they may be symbolic (`jax.export`).
        true_sizes: The true height and width before and after, if the arrays are padded.

    Returns:
        The resized feature map; what is beyond its true size means nothing.
    """
    before, after = true_sizes or (x.shape[1:3], size)
    axes = zip(x.shape[1:3], size, before, after, strict=True)
    rows, columns = (jnp.asarray(_interpolation(*axis), x.dtype) for axis in axes)
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    rows = jnp.broadcast_to(rows, (x.shape[0], *rows.shape))  # so no transposition of x is needed
    return product("xw,bywc->byxc", columns, product("byh,bhwc->bywc", rows, x))


def upsample(
    x: FeatureMap, size: tuple[Any, Any], *, factor: int, true_size: MapSize | None
) -> Float[Array, "b new_h new_w c"]:
    """Resize a map to the map of which it is a strided one, by `resize_by_products`.

    Args:
        x: The feature map.
        size: The new height and width.
        factor: The stride between the two.
        true_size: The true height and width of the larger map; None: it is not padded.

    Returns:
        The resized feature map.
    """
    if x.shape[1:3] == tuple(size):
        return x
    before = strided(true_size, factor)
    true_sizes = None if before is None or true_size is None else (before, true_size)
    return resize_by_products(x, size, true_sizes=true_sizes)


def _interpolation(num_in: Any, num_out: Any, true_in: Any, true_out: Any) -> Any:
    """Return the interpolation weights [num_out, num_in] of output positions for input pixels.

    In integers, since float32 would round the positions far from 0.
    """
    # By NumPy they are constants, which no kernel computes.
    is_known = all(isinstance(n, int) for n in (num_in, num_out, true_in, true_out))
    xp: Any = np if is_known else jnp
    twice = 2 * true_out  # the unit of positions, which are (i + 1/2)·in/out − 1/2 input pixels
    position = (2 * xp.arange(num_out) + 1) * true_in - true_out
    position = xp.clip(position, 0, twice * (true_in - 1))[:, None]
    low, weight = position // twice, (position % twice) / twice  # weight: of the higher pixel
    pixels = xp.arange(num_in)[None]
    return xp.where(pixels == low, 1 - weight, 0) + xp.where(pixels == low + 1, weight, 0)


def strided(size: MapSize | None, stride: int = 2) -> MapSize | None:
    """Return the true size of a map after a layer of this stride, ⌈n/stride⌉ along each axis."""
    if size is None:
        return None
    height, width = (-(-side // stride) for side in size)
    return height, width


def inside(x: FeatureMap, size: MapSize) -> Bool[Array, "1 h w 1"]:
    """Return which pixels are inside the true height and width of a padded map."""
    rows, columns = (jnp.arange(n) < true for n, true in zip(x.shape[1:3], size, strict=True))
    return rows[None, :, None, None] & columns[None, None, :, None]


def zero_outside(x: FeatureMap, size: MapSize | None) -> FeatureMap:
    """Return a padded map with zeros outside its true size, as a convolution pads its input.

    Args:
        x: The map.
        size: Its true height and width; None: it is not padded.

    Returns:
        The map, of the same shape.
    """
    return x if size is None else jnp.where(inside(x, size), x, 0)
