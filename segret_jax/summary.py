"""Size of a model: python -m segret_jax.summary --model segret_tiny --size 512x2048.

Prints parameters, multiply-adds and activation memory without allocating a weight. Multiply-adds
come from one formula per layer (`count`), and tests hold them against the model's own jaxpr.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from segret_jax import cli
from segret_jax.config import Config, ModelConfig
from segret_jax.errors import InputError, unknown_name
from segret_jax.models.blocked_retention import CACHED_SCORES
from segret_jax.models.layers import SampleKeys
from segret_jax.models.rmt import VARIANTS, Variant
from segret_jax.training.state import abstract

Size = tuple[int, int]  # height, width
PARTS = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "decoder")
# The paper's FLOPs follow the rules of the column "layers" (mmcv's) and are yet a little smaller.
# Inferred, as it explains all four to the last digit: that counter skips SyncBN, and the paper
# counted tiny and small with SyncBN in the fuse alone, base and large with it everywhere.
SYNCED_IN_PAPER = ("base", "large")
REPORT = """\
{model}, {size} (height x width), batch {batch}, {num_classes} classes

{table}

Each stage is counted with the downsample after it. G = 10^9, GB = 10^9 bytes.
  mult-adds   multiply-adds of convolutions and linear layers
  retention   multiply-adds of Q K^T and of scores x V; they are in no other column
  layers      mult-adds + 1 per output of a convolution's bias, 2 per normalised element,
              1 per ReLU: what mmcv counts on the released model
  paper       layers less the batch norms that the paper's count leaves out (inferred from its
              four figures: mmcv does not count SyncBN)

Full count (mult-adds + retention): {full}
  The model runs {skipped} less of it: it fuses before it upsamples, with the same result. In
  evaluation it makes one product of the decoder's two branches, too.
Kept for the backward pass: {saved:.2f} GB
  What jax.vjp of the network, in {dtype} and without the loss, saves beside parameters.
  XLA may keep less, by computing part of it again.
Largest score matrix of one image: {scores:.2f} GB in float32, in stage {stage}
  The model works in blocks and forms at most {block:.2f} GB of it at a time, on CPU
  {cached:.0f} MB; on a TPU none of lines that a kernel can keep on the chip."""


@dataclass(frozen=True)
class Cost:
    """Operations on one image; sums and multiples are taken field by field."""

    mult_adds: int = 0
    extra: int = 0  # convolution biases, norms and ReLUs, as mmcv counts them
    unseen: int = 0  # the share of `extra` that the paper's counter missed
    retention: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * getattr(self, f) for f in self.__dataclass_fields__))

    @property
    def layers(self) -> int:
        return self.mult_adds + self.extra

    @property
    def paper(self) -> int:
        return self.layers - self.unseen


def operations(config: ModelConfig, num_classes: int, size: Size) -> float:
    """Return the operations of a forward pass over one image, two for each multiply-add.

    With those of retention; the decoder fuses after it upsamples, as published.
    """
    cost = count(config, num_classes, size)
    return 2.0 * sum(part.mult_adds + part.retention for part in cost.values())


def count(config: ModelConfig, num_classes: int, size: Size) -> dict[str, Cost]:
    """Return {part: Cost} for one image of `size`, by formula; keys are `PARTS`."""
    variant, sizes = VARIANTS[config.variant], stage_sizes(size)
    seen = config.variant not in SYNCED_IN_PAPER
    parts = {"stem": _stem(variant.widths[0], size, seen=seen)}
    for i, depth in enumerate(variant.depths):
        cost = _block(variant, i, sizes[i], ffn_conv=config.ffn_conv) * depth
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
    return convs + linears + _norm(2 * pixels * c) + Cost(retention=2 * pixels * keys * c)


def _decoder(config: ModelConfig, num_classes: int, sizes: Sequence[Size], *, seen: bool) -> Cost:
    variant, cost = VARIANTS[config.variant], Cost()
    c = config.decoder_channels or variant.decoder_channels
    for size, width in zip(sizes, variant.widths, strict=True):
        pixels = math.prod(size)
        cost += _linear(pixels, width, c)
        if config.zero_branch:
            relu = Cost(extra=pixels * c)
            cost += _conv(pixels, width, c, 1) + _norm(pixels * c, seen=seen) + relu
    pixels = math.prod(sizes[0])
    fuse = _linear(pixels, 4 * c, c) + _norm(pixels * c, seen=False) + Cost(extra=pixels * c)
    return cost + fuse + _conv(pixels, c, num_classes, 1)


def fuse_saving(config: ModelConfig, size: Size) -> int:
    """Return the multiply-adds saved by fusing before upsampling, as `Decoder` does."""
    c = config.decoder_channels or VARIANTS[config.variant].decoder_channels
    pixels = [math.prod(s) for s in stage_sizes(size)]
    return c * c * (4 * pixels[0] - sum(pixels))


def largest_scores(variant: Variant, size: Size) -> tuple[int, int]:
    """Return (elements, stage from 1) of one image's largest matrix of retention scores."""
    shapes = zip(stage_sizes(size), variant.heads, variant.decomposed, strict=True)
    scores = [n * h * w * (max(h, w) if lines else h * w) for (h, w), n, lines in shapes]
    return max(scores), scores.index(max(scores)) + 1


def parameters(params: Any) -> dict[str, int]:
    """Return {part: number of parameters} of a model's nested dict; keys are `PARTS`."""
    encoder = params["encoder"]
    trees = [encoder["stem"]]
    trees += [(blocks, encoder["downsamples"].get(i)) for i, blocks in encoder["stages"].items()]
    trees += [params["decoder"]]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]
    return dict(zip(PARTS, sizes, strict=True))


def saved_bytes(f: Callable, params: Any, x: jax.ShapeDtypeStruct) -> int:
    """Return the bytes that `jax.vjp` keeps to differentiate f(params, x) by `params`.

    Only values that depend on `x` count, each once: no parameter, mask or constant.
    """

    def residuals(params: Any, x: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(jax.vjp(lambda params: f(params, x), params)[1])

    jaxpr = jax.make_jaxpr(residuals)(params, x).jaxpr
    of_x = {id(jaxpr.invars[-1])}
    for equation in jaxpr.eqns:
        if any(id(v) in of_x for v in equation.invars):
            of_x.update(map(id, equation.outvars))
    kept = {id(v): v.aval for v in jaxpr.outvars if id(v) in of_x}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


def summarize(config: ModelConfig, num_classes: int, size: Size, *, batch: int = 1) -> str:
    """Return the text that the command prints, with the operations of `batch` images."""
    graph, params, batch_stats = abstract(config, num_classes)

    def forward(variables: Any, image: jax.Array) -> jax.Array:
        keys = SampleKeys(jax.random.key(0), jnp.arange(batch))
        return nnx.merge(graph, *variables)(image, train=True, keys=keys)

    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    costs = {part: cost * batch for part, cost in count(config, num_classes, size).items()}
    total = sum(costs.values(), Cost())
    scores, stage = largest_scores(VARIANTS[config.variant], size)
    return REPORT.format(
        model=f"segret_{config.variant}",
        size=f"{size[0]}x{size[1]}",
        batch=batch,
        num_classes=num_classes,
        table=_table(parameters(params), costs),
        full=_giga(total.mult_adds + total.retention),
        skipped=_giga(batch * fuse_saving(config, size)),
        saved=saved_bytes(forward, (params, batch_stats), image) / 1e9,
        dtype=config.dtype,
        scores=4 * scores / 1e9,
        stage=stage,
        block=4 * config.max_scores / 1e9,
        cached=4 * CACHED_SCORES / 1e6,
    )


def _table(num_params: dict[str, int], costs: dict[str, Cost]) -> str:
    num_params = {**num_params, "total": sum(num_params.values())}
    rows = [["", "parameters", "mult-adds", "retention", "layers", "paper"]]
    for part, cost in {**costs, "total": sum(costs.values(), Cost())}.items():
        counts = (cost.mult_adds, cost.retention, cost.layers, cost.paper)
        rows.append([part, f"{num_params[part]:,}", *map(_giga, counts)])
    return "\n".join(f"{row[0]:<8}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows)


def _giga(operations: int) -> str:
    return f"{operations / 1e9:.2f}G"


def parse_size(text: str) -> Size:
    """Read "512x2048" as (height, width); raise InputError if it is not that."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(f"--size is {text!r}; it takes HEIGHTxWIDTH in pixels, such as 512x2048")
    return int(match[1]), int(match[2])


def main(argv: list[str]) -> None:
    models = {f"segret_{variant}": variant for variant in VARIANTS}
    parser = cli.Parser(__doc__)
    parser.add_argument("--model", default="segret_tiny", help=", ".join(models))
    parser.add_argument("--size", default="512x2048", help="HEIGHTxWIDTH of the input, in pixels")
    parser.add_argument("--num_classes", type=int, default=150)
    parser.add_argument("--batch", type=int, default=1, help="images")
    args, overrides = parser.parse(argv)
    if args.model not in models:
        raise unknown_name("model", args.model, models)
    if min(args.num_classes, args.batch) < 1:
        raise InputError("--num_classes and --batch take whole numbers from 1")
    size = parse_size(args.size)
    config = Config(model=ModelConfig(variant=models[args.model]))
    model = cli.apply_overrides(config, overrides).model
    print(summarize(model, args.num_classes, size, batch=args.batch))


if __name__ == "__main__":
    cli.run(main)
