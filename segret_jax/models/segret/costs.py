"""What SegRet takes, by formula: multiply-adds, parameters, memory of training.

Multiply-adds come from one formula per layer; tests hold them against the model's own jaxpr.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax

from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Size
from segret_jax.models.flops import Cost
from segret_jax.models.retention.blocked import CACHED_SCORES
from segret_jax.models.segret.variants import VARIANTS, Variant

PARTS = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "decoder")
# The paper's FLOPs follow the rules of the column "layers" (mmcv's) and are yet a little smaller.
# Inferred, as it explains all four to the last digit: that counter skips SyncBN, and the paper
# counted tiny and small with SyncBN in the fuse alone, base and large with it everywhere.
SYNCED_IN_PAPER = ("base", "large")
# Tensors that a training step holds at its peak: of a block's width, and of the width of the stem's
# maps and of the decoder's. XLA on CPU orders operations by memory (training/step.py). Fitted to
# what XLA's `memory_analysis` says of compiled steps (tests/training/test_forecast.py).
BLOCK, REST = 16.5, 19.0
CPU_BLOCK, CPU_REST = 8.1, 12.9
LOGITS = 3.0  # tensors as large as them
HIDDEN = 1 / 6  # of BLOCK, for each of the FFN's hidden channels
NOTES = """\
Full count (mult-adds + attention): {full}
  The model runs {skipped} less of it: it fuses before it upsamples, with the same result. In
  evaluation it makes one product of the decoder's two branches, too.
Largest score matrix of one image: {scores:.2f} GB in float32, in stage {stage}
  The model works in blocks and forms at most {block:.2f} GB of it at a time, on CPU
  {cached:.0f} MB; on a TPU none of lines that a kernel can keep on the chip."""


def count(config: ModelConfig, num_classes: int, size: Size) -> dict[str, Cost]:
    """Return {part: Cost} for one image of `size`, by formula; keys are `PARTS`."""
    variant, sizes = VARIANTS[config.variant], stage_sizes(size)
    seen = config.variant not in SYNCED_IN_PAPER
    parts = {"stem": _stem(variant.widths[0], size, seen=seen)}
    for i, depth in enumerate(variant.depths):
        cost = _block(variant, i, sizes[i], ffn_conv=config.settings.ffn_conv) * depth
        if i < 3:
            pixels, c_out = math.prod(sizes[i + 1]), variant.widths[i + 1]
            cost += _conv(pixels, variant.widths[i], c_out) + _norm(pixels * c_out, seen=seen)
        parts[f"stage {i + 1}"] = cost
    parts["decoder"] = _decoder(config, num_classes, sizes, seen=seen)
    return parts


def stage_sizes(size: Size) -> list[Size]:
    """Return the sizes of the four stages' maps; every halving rounds up."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]


def _conv(pixels: int, c_in: int, c_out: int, kernel: int = 3) -> Cost:
    return Cost(kernel * kernel * c_in * c_out * pixels, extra=c_out * pixels)


def _linear(pixels: int, c_in: int, c_out: int) -> Cost:
    return Cost(c_in * c_out * pixels)  # mmcv leaves out the biases of Linear


def _norm(elements: int, *, seen: bool = True) -> Cost:
    return Cost(extra=2 * elements, unseen=0 if seen else 2 * elements)


def _stem(channels: int, size: Size, *, seen: bool) -> Cost:
    half, pixels = channels // 2, math.prod(stage_sizes(size)[0])
    at_half = -(-size[0] // 2) * -(-size[1] // 2)
    first = _conv(at_half, 3, half) + _conv(at_half, half, half)
    second = _conv(pixels, half, channels) + _conv(pixels, channels, channels)
    return first + second + _norm(2 * (at_half * half + pixels * channels), seen=seen)


def _block(variant: Variant, stage: int, size: Size, *, ffn_conv: bool) -> Cost:
    c, pixels = variant.widths[stage], math.prod(size)
    hidden = variant.ffn_ratios[stage] * c
    convs = _conv(pixels, 1, c, 3) + _conv(pixels, 1, c, 5)
    if ffn_conv:
        convs += _conv(pixels, 1, hidden, 3)
    linears = _linear(pixels, c, 4 * c) + _linear(pixels, c, hidden) + _linear(pixels, hidden, c)
    keys = sum(size) if variant.decomposed[stage] else pixels  # that one query meets
    return convs + linears + _norm(2 * pixels * c) + Cost(attention=2 * pixels * keys * c)


def _decoder(config: ModelConfig, num_classes: int, sizes: Sequence[Size], *, seen: bool) -> Cost:
    variant, cost = VARIANTS[config.variant], Cost()
    c = config.settings.decoder_channels or variant.decoder_channels
    for size, width in zip(sizes, variant.widths, strict=True):
        pixels = math.prod(size)
        cost += _linear(pixels, width, c)
        if config.settings.zero_branch:
            relu = Cost(extra=pixels * c)
            cost += _conv(pixels, width, c, 1) + _norm(pixels * c, seen=seen) + relu
    pixels = math.prod(sizes[0])
    fuse = _linear(pixels, 4 * c, c) + _norm(pixels * c, seen=False) + Cost(extra=pixels * c)
    return cost + fuse + _conv(pixels, c, num_classes, 1)


def fuse_saving(config: ModelConfig, size: Size) -> int:
    """Return the multiply-adds saved by fusing before upsampling, as `Decoder` does."""
    c = config.settings.decoder_channels or VARIANTS[config.variant].decoder_channels
    pixels = [math.prod(s) for s in stage_sizes(size)]
    return c * c * (4 * pixels[0] - sum(pixels))


def largest_scores(variant: Variant, size: Size) -> tuple[int, int]:
    """Return (elements, stage from 1) of one image's largest matrix of retention scores."""
    shapes = zip(stage_sizes(size), variant.heads, variant.decomposed, strict=True)
    scores = [n * h * w * (max(h, w) if lines else h * w) for (h, w), n, lines in shapes]
    return max(scores), scores.index(max(scores)) + 1


def count_parameters(params: Any) -> dict[str, int]:
    """Return {part: number of parameters} of a model's nested dict; keys are `PARTS`."""
    encoder = params["encoder"]
    trees = [encoder["stem"]]
    trees += [(blocks, encoder["downsamples"].get(i)) for i, blocks in encoder["stages"].items()]
    trees += [params["decoder"]]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]
    return dict(zip(PARTS, sizes, strict=True))


def activation_bytes(model: ModelConfig, num_classes: int, *, on_cpu: bool) -> float:
    """Return the bytes per pixel of the input that a training step holds at its peak."""
    variant = VARIANTS[model.variant]
    block, rest = (CPU_BLOCK, CPU_REST) if on_cpu else (BLOCK, REST)
    total = 0.0
    for stage, (width, depth, ratio) in enumerate(
        zip(variant.widths, variant.depths, variant.ffn_ratios, strict=True)
    ):
        tensors = block * (1 + HIDDEN * ratio)
        # Of blocks that are computed again only the inputs stay, and all of the one at work.
        tensors = depth + tensors if stage + 1 in model.remat else depth * tensors
        total += tensors * width / 4 ** (stage + 2)
    stem = 2 * (variant.widths[0] / 2 / 4 + variant.widths[0] / 16)
    decoder = (model.settings.decoder_channels or variant.decoder_channels) / 16
    total += rest * (stem + decoder) + LOGITS * num_classes / 16
    return total * (2 if model.dtype == "bfloat16" and not on_cpu else 4)


def notes(model: ModelConfig, size: Size, *, batch: int, total: Cost) -> str:
    """Return what `segret summary` says beside its table."""
    scores, stage = largest_scores(VARIANTS[model.variant], size)
    return NOTES.format(
        full=f"{(total.mult_adds + total.attention) / 1e9:.2f}G",
        skipped=f"{batch * fuse_saving(model, size) / 1e9:.2f}G",
        scores=4 * scores / 1e9,
        stage=stage,
        block=4 * model.settings.max_scores / 1e9,
        cached=4 * CACHED_SCORES / 1e6,
    )
