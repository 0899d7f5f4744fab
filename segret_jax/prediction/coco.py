"""Masks in COCO's run-length encoding, which `pycocotools` reads."""

from typing import Any

import numpy as np
from jaxtyping import Bool


def encode_mask(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Return the compressed run-length encoding of a mask."""
    pixels = mask.T.ravel()  # column after column
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0], changes, [pixels.size]])
    runs = np.diff(edges).tolist()
    if pixels[0]:  # the first run is of zeros
        runs.insert(0, 0)
    return {"size": list(mask.shape), "counts": compress(runs)}


def compress(runs: list[int]) -> str:
    """Write each run, less the one two before it, as 5-bit groups, the lowest first.

    Bit 5 of a character says that another follows; bit 4 of the last one is the sign. The
    difference begins with the fourth run.
    """
    characters = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            group, value = value & 31, value >> 5
            is_last = value == (-1 if group & 16 else 0)
            characters.append(chr(48 + group + (0 if is_last else 32)))
            if is_last:
                break
    return "".join(characters)


def bounding_box(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return [x, y, width, height] of the pixels of a mask that has some."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((int(i[0]), int(i[-1]) + 1) for i in (rows, columns))
    return [left, top, right - left, bottom - top]
