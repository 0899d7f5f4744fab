"""Multiply-adds, parameters and training memory of SegRet, by formula.

Tests compare the multiply-adds, one formula per layer, with the model's own jaxpr.
"""

import math
from collections.abc import Sequence

from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Size
from segret_jax.models.flops import Cost, stage_sizes
from segret_jax.models.flops import count_parameters as count_parameters  # of the family, too
from segret_jax.models.segret.variants import VARIANTS, Variant

# Tensors that a training step holds at its peak: of a block's width, and of the width of the stem's
# and the decoder's maps. XLA on CPU orders operations by memory (training/step.py). Fitted to
# XLA's `memory_analysis` of compiled steps (tests/training/test_forecast.py).
BLOCK, REST = 16.5, 19.0
CPU_BLOCK, CPU_REST = 8.1, 12.9
LOGITS = 3.0  # tensors as large as them
HIDDEN = 1 / 6  # of BLOCK, for each of the FFN's hidden channels


LEGEND = """\
Each stage is counted with the downsample after it.
  mult-adds    multiply-adds of convolutions and linear layers
  attention    multiply-adds of Q K^T and of scores x V; they are in no other column
  elementwise  1 per output of a convolution's bias, 2 per normalized element, 1 per ReLU
"""


def count(config: ModelConfig, num_classes: int, size: Size) -> dict[str, Cost]:
    """Return {part: Cost} for one image of `size`, by formula; keys are `flops.PARTS`."""
    variant, sizes = VARIANTS[config.variant], stage_sizes(size)
    parts = {"stem": _stem(variant.widths[0], size)}
    for i, depth in enumerate(variant.depths):
        cost = _block(variant, i, sizes[i], ffn_conv=config.settings.ffn_conv) * depth
        if i < 3:
            pixels, c_out = math.prod(sizes[i + 1]), variant.widths[i + 1]
            cost += _conv(pixels, variant.widths[i], c_out) + _norm(pixels * c_out)
        parts[f"stage {i + 1}"] = cost
    parts["decoder"] = _decoder(config, num_classes, sizes)
    return parts


def _conv(pixels: int, c_in: int, c_out: int, kernel: int = 3) -> Cost:
    return Cost(kernel * kernel * c_in * c_out * pixels, elementwise=c_out * pixels)


def _linear(pixels: int, c_in: int, c_out: int) -> Cost:
    return Cost(c_in * c_out * pixels)  # mmcv leaves out the biases of Linear


def _norm(elements: int) -> Cost:
    return Cost(elementwise=2 * elements)


def _stem(channels: int, size: Size) -> Cost:
    half, pixels = channels // 2, math.prod(stage_sizes(size)[0])
    at_half = -(-size[0] // 2) * -(-size[1] // 2)
    first = _conv(at_half, 3, half) + _conv(at_half, half, half)
    second = _conv(pixels, half, channels) + _conv(pixels, channels, channels)
    return first + second + _norm(2 * (at_half * half + pixels * channels))


def _block(variant: Variant, stage: int, size: Size, *, ffn_conv: bool) -> Cost:
    c, pixels = variant.widths[stage], math.prod(size)
    hidden = variant.ffn_ratios[stage] * c
    convs = _conv(pixels, 1, c, 3) + _conv(pixels, 1, c, 5)
    if ffn_conv:
        convs += _conv(pixels, 1, hidden, 3)
    linears = _linear(pixels, c, 4 * c) + _linear(pixels, c, hidden) + _linear(pixels, hidden, c)
    keys = sum(size) if variant.decomposed[stage] else pixels  # that one query meets
    return convs + linears + _norm(2 * pixels * c) + Cost(attention=2 * pixels * keys * c)


def _decoder(config: ModelConfig, num_classes: int, sizes: Sequence[Size]) -> Cost:
    variant, cost = VARIANTS[config.variant], Cost()
    c = config.settings.decoder_channels or variant.decoder_channels
    for size, width in zip(sizes, variant.widths, strict=True):
        pixels = math.prod(size)
        cost += _linear(pixels, width, c)
        if config.settings.zero_branch:
            cost += _conv(pixels, width, c, 1) + Cost(elementwise=3 * pixels * c)  # norm and ReLU
    pixels = math.prod(sizes[0])
    fuse = _linear(pixels, 4 * c, c) + Cost(elementwise=3 * pixels * c)
    return cost + fuse + _conv(pixels, c, num_classes, 1)


def fuse_saving(config: ModelConfig, size: Size) -> int:
    """Return the multiply-adds saved by fusing before upsampling, as `Decoder` does."""
    c = config.settings.decoder_channels or VARIANTS[config.variant].decoder_channels
    pixels = [math.prod(s) for s in stage_sizes(size)]
    return c * c * (4 * pixels[0] - sum(pixels))


def activation_bytes(config: ModelConfig, num_classes: int, *, on_cpu: bool) -> float:
    """Return the bytes per pixel of the input that a training step holds at its peak."""
    variant = VARIANTS[config.variant]
    block, rest = (CPU_BLOCK, CPU_REST) if on_cpu else (BLOCK, REST)
    total = 0.0
    stages = zip(variant.widths, variant.depths, variant.ffn_ratios, strict=True)
    for stage, (width, depth, ratio) in enumerate(stages):
        tensors = block * (1 + HIDDEN * ratio)
        # Of recomputed blocks only the inputs stay, and all of the current one. On CPU a compiled
        # step takes as much memory as without recomputation.
        is_recomputed = stage + 1 in config.remat and not on_cpu
        tensors = depth + tensors if is_recomputed else depth * tensors
        total += tensors * width / 4 ** (stage + 2)
    stem = 2 * (variant.widths[0] / 2 / 4 + variant.widths[0] / 16)
    decoder = (config.settings.decoder_channels or variant.decoder_channels) / 16
    total += rest * (stem + decoder) + LOGITS * num_classes / 16
    return total * (2 if config.dtype == "bfloat16" and not on_cpu else 4)


def notes(config: ModelConfig, size: Size, *, batch: int, total: Cost) -> str:
    """Return the text of `segret summary` below its table."""
    full = total.mult_adds + total.attention + total.elementwise
    published = total.mult_adds + total.elementwise
    return (
        f"{LEGEND}\nFull count (all three): {full / 1e9:.2f}G\n"
        f"  The paper counts no attention: {published / 1e9:.2f}G here; its figures are up to 0.3G "
        "smaller.\n"
        f"  The decoder runs {batch * fuse_saving(config, size) / 1e9:.2f}G less: it multiplies"
        " before it resizes, with the same result."
    )
