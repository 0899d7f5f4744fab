"""The plan of an evaluation: which parts of which images go through the network together.

The network is compiled for each padded size of its input (`evaluation.padding`). The images of a
call share one true size, so images whose inputs have the same sizes share batches. The images'
headers tell the sizes and the compilations before the start.
"""

import collections
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from segret_jax.config import EvalConfig
from segret_jax.data.transforms import aligned_size, keep_ratio_size
from segret_jax.evaluation import padding as paddings
from segret_jax.evaluation.padding import Padding, Size


class Tiling(NamedTuple):
    """One scale of an image: the network input, and the tiles of it that the network sees.

    A tile is the whole input, or one of the windows that begin at `tops` x `lefts`.
    """

    size: Size
    tile: Size
    tops: tuple[int, ...] = (0,)
    lefts: tuple[int, ...] = (0,)

    @property
    def num_tiles(self) -> int:
        return len(self.tops) * len(self.lefts)

    def corner(self, number: int) -> tuple[int, int]:
        """Return the top left pixel of tile `number`, counted along rows."""
        row, column = divmod(number, len(self.lefts))
        return self.tops[row], self.lefts[column]


def logits_size(tile: Size, stride: int) -> Size:
    """Return the size of the logits that a model of this stride gives for an input of `tile`."""
    height, width = (-(-side // stride) for side in tile)
    return height, width


def scaled_target(config: EvalConfig, scale: float) -> tuple[int, int]:
    """Return `resize_target` at a scale, rounded down."""
    long, short = config.resize_target
    return int(long * scale), int(short * scale)


def tilings(size: Size, config: EvalConfig, *, min_side: int = 1) -> tuple[Tiling, ...]:
    """Return the tiling of an image at each of the config's scales.

    Sides are stretched to multiples of `config.multiple_of` from `min_side` on.

    Args:
        size: The image's (height, width).
        config: The settings of the evaluation.
        min_side: The shortest side that the network takes (`Family.min_side`).
    """
    return tuple(_tiling(size, config, scale, min_side) for scale in config.scales)


def _tiling(size: Size, config: EvalConfig, scale: float, min_side: int) -> Tiling:
    kept = keep_ratio_size(size, scaled_target(config, scale))
    network = aligned_size(kept, config.multiple_of, min_side)
    if config.mode == "whole":
        return Tiling(network, network)
    tile = min(network[0], config.window[0]), min(network[1], config.window[1])
    tops, lefts = map(window_starts, network, tile, config.stride)
    return Tiling(network, tile, tops, lefts)


def window_starts(length: int, window: int, stride: int) -> tuple[int, ...]:
    """Return where windows begin along an axis; the last is moved back inside."""
    num = -(-(length - window) // stride) + 1
    return tuple(min(i * stride, length - window) for i in range(num))


@dataclass(frozen=True)
class Plan:
    """The batches of indices, in order, and what they ask of the network."""

    batches: list[list[int]]
    passes: Mapping[Size, int]  # of a batch through the network, by padded size of its input
    held_logits: int  # positions of logits kept of one image at most, over all its tiles
    num_stretched: int = 0  # images with a side shorter than the network takes
    padding: Padding = field(default_factory=dict)

    @property
    def largest(self) -> Size:
        """The network input with the most pixels."""
        return max(self.passes, key=math.prod)

    @property
    def pixels(self) -> int:
        """Pixels of all passes, of one image per batch."""
        return sum(math.prod(size) * count for size, count in self.passes.items())

    def describe(self) -> str:
        """Return the plan in one line."""
        num_images = sum(map(len, self.batches))
        smallest = min(self.passes, key=math.prod)
        sizes = " to ".join(dict.fromkeys(f"{h}x{w}" for h, w in (smallest, self.largest)))
        return (
            f"{num_images} images in {len(self.batches)} batches, {sum(self.passes.values())} "
            f"passes of the network; sizes of its input to compile: {len(self.passes)} ({sizes})"
        )


def choose_padding(sizes: Iterable[Size], config: EvalConfig, *, min_side: int = 1) -> Padding:
    """Choose the padded sizes of the network's inputs for images of these (height, width).

    With several processes, all of them need the sizes of all images.
    """
    padding: dict[Size, Size | None] = {}
    tiled = [tilings(size, config, min_side=min_side) for size in sizes]
    for scale in zip(*tiled, strict=True):
        counts = collections.Counter[Size]()
        for tiling in scale:
            counts[tiling.tile] += tiling.num_tiles
        # Where scales share an input's size, one program for it is enough.
        padding = paddings.choose(counts) | padding
    return padding


def make_plan(
    sizes: Mapping[int, Size],
    config: EvalConfig,
    batch_size: int,
    *,
    stride: int,
    min_side: int = 1,
    padding: Padding | None = None,
) -> Plan:
    """Plan for images given as {index: (height, width)}, `batch_size` at once on all devices.

    Large inputs come first: what does not fit into memory fails at once.

    Args:
        sizes: The images' (height, width) by index.
        config: The settings of the evaluation.
        batch_size: The number of images predicted together.
        stride: The stride of the model's logits.
        min_side: The shortest side that the network takes (`Family.min_side`).
        padding: The padded sizes of the network's inputs (`choose_padding`); None: as they are.
    """
    padding = padding or {}

    def padded(tile: Size) -> Size:
        return padding.get(tile) or tile

    tiled = {i: tilings(size, config, min_side=min_side) for i, size in sizes.items()}
    groups = collections.defaultdict(list)
    for index, scales in tiled.items():
        groups[tuple(tiling.tile for tiling in scales)].append(index)
    batches, passes = [], collections.Counter[Size]()
    views = 2 if config.flip else 1
    for tiles in sorted(groups, key=lambda tiles: -sum(map(math.prod, tiles))):
        # Alike in number of windows and in size: the fewer positions of a batch run idle.
        alike = sorted(groups[tiles], key=lambda i: (sum(t.num_tiles for t in tiled[i]), sizes[i]))
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            batches.append(batch)
            for scale, tile in enumerate(tiles):
                passes[padded(tile)] += views * max(tiled[i][scale].num_tiles for i in batch)
    held = (
        views * sum(t.num_tiles * math.prod(logits_size(padded(t.tile), stride)) for t in scales)
        for scales in tiled.values()
    )
    stretched = sum(tiled[i] != tilings(size, config) for i, size in sizes.items())
    return Plan(batches, passes, max(held, default=0), stretched, padding)
