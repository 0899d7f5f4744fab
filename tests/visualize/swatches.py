"""Which classes a drawn legend shows, read from its pixels."""

import numpy as np

from segret_jax.data.class_table import ClassTable
from segret_jax.visualize.text import FONT_SIZE


def swatches(picture: np.ndarray, table: ClassTable, size: int = FONT_SIZE) -> list[int]:
    """Return the classes whose colors fill a square of a swatch's size (without its outline)."""
    side = size - 2 * max(1, size // FONT_SIZE)
    codes = picture.astype(np.int32) @ (1, 256, 65536)
    return [
        i
        for i, color in enumerate(table.colors.astype(int) @ (1, 256, 65536))
        if _holds_square(codes == color, side)
    ]


def _holds_square(mask: np.ndarray, side: int) -> bool:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) < side or len(columns) < side:
        return False
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    area = np.pad(part.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = area[side:, side:] - area[:-side, side:] - area[side:, :-side] + area[:-side, :-side]
    return bool(sums.max() == side**2)
