"""Multiply-adds, parameters and training memory of SegMAN, by formula.

The operations are those of the released code, which tests compare with the model's own jaxpr.
"""

import math

from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Size
from segret_jax.models.flops import Cost, stage_sizes
from segret_jax.models.flops import count_parameters as count_parameters  # of the family, too
from segret_jax.models.segman.variants import VARIANTS, Variant

# {variant: 10^9 operations at 512×512 with 150 classes, at 1024×2048 for Cityscapes}. By this count
# tiny's second has 150 classes, too (with 19 it is 51.0), and large's is 797: its released widths
# are perhaps others.
PUBLISHED = {
    "tiny": (6.2, 52.5), "small": (25.3, 218.4), "base": (58.1, 479.0), "large": (97.1, 769.0),
}  # fmt: skip
# Elementwise operations: per element of a layer norm, per step of a scan in one direction, per
# score of the global attention and of a neighborhood, per resized logit. 5 is fvcore's, which
# counted the published figures, 10 that of the count with which VMamba extends it. The others are
# chosen: with them the totals are those of the specification, whose own count is not known.
LAYER_NORM, SCAN, GLOBAL_SCORE, WINDOW_SCORE, RESIZE = 5, 10, 4, 2, 4
# Tensors that a training step holds at its peak: of a block's width, and of the width of the stem's
# and the decoder's maps. On CPU they are fitted to XLA's `memory_analysis` of compiled steps
# (tests/training/test_forecast.py). On a GPU nothing was compiled: they are twice what `jax.vjp`
# keeps, as they are for SegRet.
BLOCK, REST = 59.0, 7.4
CPU_BLOCK, CPU_REST = 51.7, 10.7
HIDDEN = 1 / 30  # of BLOCK, for each of the FFN's hidden channels
BFLOAT16 = 2.8  # bytes per value: scans and statistics stay in float32

LEGEND = """\
Each stage is counted with the downsample after it; the operations are the released code's.
  mult-adds    multiply-adds of convolutions and linear layers
  attention    multiply-adds of Q K^T and of scores x V
  elementwise  1 per element of a batch norm, 5 of a layer norm, 10 per step of a scan in one
               direction, 2 per score of a neighborhood, 4 of the global attention, 4 per resized
               logit
"""


def count(config: ModelConfig, num_classes: int, size: Size) -> dict[str, Cost]:
    """Return {part: Cost} for one image of `size`, by formula; keys are `flops.PARTS`."""
    variant, pixels = VARIANTS[config.variant], stage_pixels(size)
    parts = {"stem": _stem(variant.widths[0], size)}
    for i, depth in enumerate(variant.depths):
        cost = _block(variant, i, pixels[i]) * depth
        if i < 3:
            c_out = variant.widths[i + 1]
            cost += _conv_norm(pixels[i + 1], variant.widths[i], c_out, 3)
        parts[f"stage {i + 1}"] = cost
    parts["decoder"] = _decoder(config, num_classes, size)
    return parts


def stage_pixels(size: Size) -> list[int]:
    """Return the pixels of the four stages' maps; every halving rounds up."""
    return list(map(math.prod, stage_sizes(size)))


def _conv(pixels: int, c_in: int, c_out: int, kernel: int = 1) -> Cost:
    return Cost(kernel * kernel * c_in * c_out * pixels)


def _conv_norm(pixels: int, c_in: int, c_out: int, kernel: int = 1) -> Cost:
    return _conv(pixels, c_in, c_out, kernel) + Cost(elementwise=pixels * c_out)


def _stem(channels: int, size: Size) -> Cost:
    half, pixels = channels // 2, stage_pixels(size)[0]
    at_half = -(-size[0] // 2) * -(-size[1] // 2)
    first = _conv_norm(at_half, 3, half, 3) + _conv_norm(at_half, half, half, 3)
    return first + _conv_norm(pixels, half, channels, 3) + _conv_norm(pixels, channels, channels, 3)


def _block(variant: Variant, stage: int, pixels: int) -> Cost:
    c = variant.widths[stage]
    convs = 2 * 3**2 + 5**2  # depthwise
    ffn = _ffn(pixels, c, int(variant.ffn_ratios[stage] * c))
    cost = _conv(pixels, c, 4 * c) + _conv(pixels, convs, c) + ffn
    keys = variant.windows[stage] ** 2  # of a query
    scores = variant.heads[stage] * pixels * keys
    cost += Cost(attention=2 * pixels * keys * c, elementwise=WINDOW_SCORE * scores)
    cost += Cost(elementwise=2 * LAYER_NORM * pixels * c)
    if stage < 3:
        before = _conv_norm(pixels, 3**2, c)  # depthwise
        return cost + before + _scan(pixels, c) + Cost(elementwise=LAYER_NORM * pixels * c)
    scores = variant.heads[stage] * pixels**2
    return cost + Cost(attention=2 * pixels**2 * c, elementwise=GLOBAL_SCORE * scores)


def _ffn(pixels: int, c: int, hidden: int) -> Cost:
    return _conv(pixels, c, 2 * hidden) + _conv(pixels, 3**2, hidden)  # the second is depthwise


def _scan(pixels: int, c: int) -> Cost:
    rank = math.ceil(c / 16)
    projections = _conv(pixels, c, 4 * (rank + 2)) + _conv(pixels, rank, 4 * c)
    return projections + Cost(elementwise=4 * SCAN * pixels * c)


def _widths(config: ModelConfig) -> tuple[int, int]:
    """Return the channels of the decoder and of the projected stages."""
    variant, settings = VARIANTS[config.variant], config.settings
    return (
        settings.decoder_channels or variant.decoder_channels,
        settings.projection_channels or variant.projection_channels,
    )


def _decoder(config: ModelConfig, num_classes: int, size: Size) -> Cost:
    variant, (_, p8, p16, p32), (c, f) = (
        VARIANTS[config.variant], stage_pixels(size), _widths(config),
    )  # fmt: skip
    cost = Cost()
    for pixels, width in zip((p8, p16, p32), variant.widths[1:], strict=True):
        cost += _conv(pixels, width, f)
    cost += _conv_norm(p8, 3 * f, c) + _conv_norm(p8, c, c) + _conv(1, c, c)  # fuse, short, pool
    cost += _conv_norm(p16, c, 2 * c, 3) + _conv_norm(p32, c, 4 * c, 5)
    for channels in (16 * c, 8 * c, 4 * c):
        cost += _conv_norm(p32, channels, c)
    m = 3 * c
    cost += _scan(p32, m) + _ffn(p32, m, 4 * m) + _conv(p32, 2 * 3**2, m)
    cost += Cost(elementwise=2 * LAYER_NORM * p32 * m)
    cost += _conv_norm(p8, m, f) + _conv_norm(p8, 5 * c + 3 * f, c) + _conv(p8, c, num_classes)
    return cost + Cost(elementwise=RESIZE * num_classes * math.prod(size))


def decoder_saving(config: ModelConfig, size: Size) -> int:
    """Return the multiply-adds saved by multiplying before resizing, as `Decoder` does."""
    (_, p8, p16, p32), (c, f) = stage_pixels(size), _widths(config)
    fuse = f * c * (2 * p8 - p16 - p32)
    out = 3 * c * f * (p8 - p32)
    of_pool, of_v = c * c * (p8 - 1), 3 * c * c * (p8 - p32)
    # f is multiplied once by a sum of three kernels, beside the three projected stages.
    of_projected = f * c * (3 * p8 - (2 * p8 + p16 + p32))
    return fuse + out + of_pool + of_v + of_projected


def notes(config: ModelConfig, size: Size, *, batch: int, total: Cost) -> str:
    """Return the text of `segret summary` below its table."""
    full = total.mult_adds + total.attention + total.elementwise
    small, large = PUBLISHED[config.variant]
    return (
        f"{LEGEND}\nFull count (all three): {full / 1e9:.2f}G\n"
        f"  Published: {small}G at 512x512, {large}G at 1024x2048 (Cityscapes).\n"
        f"  The decoder runs {batch * decoder_saving(config, size) / 1e9:.2f}G less: it multiplies"
        " before it resizes, with the same result."
    )


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
    total += rest * (stem + sum(_widths(config)) / 64)
    return total * (BFLOAT16 if config.dtype == "bfloat16" and not on_cpu else 4)
