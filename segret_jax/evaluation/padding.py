"""The few sizes to which inputs of the network are padded, since each size compiles a program.

The network takes the true size beside a padded input, and its logits within that size are those of
the unpadded input, up to rounding. The sizes depend on the images alone, never on the devices.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

Size = tuple[int, int]  # height, width
Padding = Mapping[Size, Size | None]  # by an input's size; None: not padded, its own program

MAX_PROGRAMS = 4
MAX_DISTINCT = 256  # sizes that `choose` merges one by one; more are rounded up first
RUNGS = (4, 5, 6, 7)  # of the ladder, times a power of 2


def ladder(size: Size) -> Size:
    """Return the padded size of an input when nothing is known about the others.

    Each side becomes the next of …, 256, 320, 384, 448, 512, 640, …: at most a quarter more.
    """
    height, width = map(_next_rung, size)
    return height, width


def _next_rung(side: int) -> int:
    octave = 2 ** max((side - 1).bit_length() - 3, 0)  # so that side ≤ 8·octave
    return next(rung * octave for rung in (*RUNGS, 8) if rung * octave >= side)


def choose(counts: Mapping[Size, int], max_programs: int = MAX_PROGRAMS) -> dict[Size, Size | None]:
    """Choose the padded sizes of inputs that are all known, with few padded pixels in all.

    At first each size is padded to itself. Then the two sizes are merged, again and again, that
    add the fewest pixels. At last each side is moved to where the pixels are fewest.

    Args:
        counts: {(height, width) of an input: how many there are}.
        max_programs: The number of padded sizes at most.

    Returns:
        {(height, width): padded size}; None where all inputs of a program have its size.
    """
    if not counts:
        return {}
    rounded = sorted(_rounded(counts).items())  # of equals, the order decides
    sizes, weights = (np.array(column) for column in zip(*rounded, strict=True))
    bounds = _improve(_merge(sizes, weights, max_programs), sizes, weights)
    smallest = bounds[_padded_pixels(np.array([*counts]), bounds).argmin(-1)].tolist()
    chosen = {size: (h, w) for size, (h, w) in zip(counts, smallest, strict=True)}
    users = Counter(chosen.values())
    return {
        size: None if size == bound and users[bound] == 1 else bound
        for size, bound in chosen.items()
    }


def _merge(bounds: np.ndarray, weights: np.ndarray, max_programs: int) -> np.ndarray:
    bounds, weights = bounds.copy(), weights.copy()
    while len(bounds) > max_programs:
        joined = np.maximum(bounds[:, None], bounds[None])
        pixels = weights * bounds.prod(-1)
        added = (weights[:, None] + weights[None]) * joined.prod(-1)
        added = added - pixels[:, None] - pixels[None]
        np.fill_diagonal(added, added.max() + 1)
        i, j = divmod(int(added.argmin()), len(bounds))
        bounds[i], weights[i] = joined[i, j], weights[i] + weights[j]
        bounds, weights = np.delete(bounds, j, 0), np.delete(weights, j)
    return bounds


def _improve(bounds: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Move one side of one bound at a time, as long as that saves pixels."""

    def pixels(bounds: np.ndarray) -> float:
        return float(_padded_pixels(sizes, bounds).min(-1) @ weights)

    best = pixels(bounds)
    sides = [(i, axis) for i in range(len(bounds)) for axis in range(2)]
    improves = True
    while improves:
        improves = False
        for i, axis in sides:
            for side in np.unique(sizes[:, axis]):
                moved = bounds.copy()
                moved[i, axis] = side
                if (found := pixels(moved)) < best:
                    bounds, best, improves = moved, found, True
    return bounds


def _padded_pixels(sizes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the pixels of each size when padded to each bound; infinite if it does not fit."""
    fits = (sizes[:, None] <= bounds[None]).all(-1)
    return np.where(fits, bounds.prod(-1, dtype=float)[None], np.inf)


def _rounded(counts: Mapping[Size, int]) -> Mapping[Size, int]:
    """Round sides up to multiples of 1, 2, 4, … until there are few distinct sizes."""
    step, merged = 1, Counter(counts)
    while len(merged) > MAX_DISTINCT:
        step, merged = 2 * step, Counter()
        for (height, width), count in counts.items():
            merged[-(-height // step) * step, -(-width // step) * step] += count
    return merged
