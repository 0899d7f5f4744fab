"""Each fast path of the model against the plain way to write it, in turns in one run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.machine import seconds
from segret_jax.models.layers import depthwise_conv, resize_bilinear
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.retention.decay import head_log_decay
from segret_jax.models.retention.formulas import decomposed_retention, whole_retention
from segret_jax.models.segret.decoder import Decoder
from segret_jax.models.segret.variants import VARIANTS
from segret_jax.training.pixel_loss import weighted_loss

ROUNDS = 12
NOISE = 0.2  # what a ratio changes by from run to run on a shared machine
Pair = tuple[Callable[[], Any], Callable[[], Any]]  # fast, plain


def main() -> int:
    """Print each path's ratio, the plain one's least time over its own.

    Returns 1 if one is slower than the plain way by more than the noise of such a measurement.
    """
    lost = 0
    paths = {"loss": loss(), "decoder": decoder()}
    if jax.default_backend() == "cpu":  # elsewhere they are not what the model runs, or the same
        paths |= {
            "retention, whole": retention(whole_retention, (48, 48), decomposed=False),
            "retention, decomposed": retention(decomposed_retention, (96, 96), decomposed=True),
            "depthwise 5x5": depthwise(),
        }
    for name, (fast, plain) in paths.items():
        times = np.array([[seconds(run, 1)[0] for run in (fast, plain)] for _ in range(ROUNDS)])
        quick, slow = times.min(axis=0)  # what else runs on the machine can only add
        print(f"{name}: {quick:.4f} s, plain {slow:.4f} s, {slow / quick:.2f} times as fast")
        lost += slow < (1 - NOISE) * quick
    return int(lost > 0)


def depthwise() -> Pair:
    """Return the forward pass and both gradients, of stage 1 of tiny at 256x256."""
    x, kernel = jnp.ones((2, 64, 64, 64)), jnp.ones((5, 5, 64))

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        shape = (5, 5, 1, x.shape[-1])
        return lax.conv_general_dilated(
            x, kernel.reshape(shape), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
        )  # fmt: skip

    def gradients(convolve: Callable) -> Callable[[], Any]:
        step = jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k))), argnums=(0, 1)))
        return lambda: step(x, kernel)

    return gradients(depthwise_conv), gradients(plain)


def retention(plain: Callable, size: tuple[int, int], *, decomposed: bool) -> Pair:
    """Return the forward pass and all gradients, of 4 heads of 16 channels."""
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(rng.standard_normal((3, 2, *size, 4, 16), np.float32))
    log_decay = head_log_decay(4, initial=2.0, span=4.0)

    def gradients(retain: Callable, **settings: bool) -> Callable[[], Any]:
        def total(qkv: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(retain(*qkv, log_decay, **settings)))

        step = jax.jit(jax.grad(total))
        return lambda: step(qkv)

    return gradients(blocked_retention, decomposed=decomposed), gradients(plain)


def decoder() -> Pair:
    """Return the gradient of tiny's decoder at 256x256; plain fuses after it upsampled."""
    widths = VARIANTS["tiny"].widths
    model = Decoder(widths, 256, 150, zero_branch=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, states)
    maps = [jnp.ones((2, 64 >> i, 64 >> i, width)) for i, width in enumerate(widths)]

    def fast(params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(nnx.merge(graph, params, batch_stats)(maps, train=True)))

    def plain(params: Any) -> jax.Array:
        model = nnx.merge(graph, params, batch_stats)
        projected = [p(f, train=True) for p, f in zip(model.projections, maps, strict=True)]
        wide = jnp.concatenate([resize_bilinear(x, (64, 64)) for x in reversed(projected)], -1)
        fused = jax.nn.relu(model.fuse_norm(model.fuse(wide), train=True))
        return jnp.sum(jnp.sin(model.classify(fused)))

    steps = [jax.jit(jax.grad(function)) for function in (fast, plain)]
    return lambda: steps[0](params), lambda: steps[1](params)


def loss() -> Pair:
    """Return loss and gradient, of 150 classes at 256x256."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 64, 64, 150), np.float32))
    label = jnp.asarray(rng.integers(0, 150, (2, 256, 256), np.uint8))
    weight = jnp.full(label.shape, 1 / label.size)

    def plain(logits: jax.Array, label: jax.Array, weight: jax.Array) -> tuple[Any, Any]:
        resized = resize_bilinear(logits, (256, 256))
        chosen = jax.nn.one_hot(label, 150) * jax.nn.log_softmax(resized)
        return -jnp.sum(weight * chosen.sum(-1)), jnp.sum(jnp.argmax(resized, -1) == label)

    def gradient(function: Callable) -> Callable[[], Any]:
        step = jax.jit(jax.value_and_grad(function, has_aux=True))
        return lambda: step(logits, label, weight)

    return gradient(weighted_loss), gradient(plain)
