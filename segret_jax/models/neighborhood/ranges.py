"""The keys that a range of queries attends to along an axis, and the queries that attend to keys.

Arguments are the first and the last pixel of a range; results are its first pixel and its end,
exclusive.
"""

from typing import Any

import jax.numpy as jnp

from segret_jax.models.neighborhood.formulas import window_starts


def keys_of(first: Any, last: Any, length: Any, window: int) -> tuple[Any, Any]:
    """Return the range of the keys in the windows of queries."""
    end = window_starts(last, length, window) + window
    return window_starts(first, length, window), end


def queries_of(first: Any, last: Any, length: Any, window: int) -> tuple[Any, Any]:
    """Return the range of the queries whose windows contain one of the keys.

    At a border it is longer: the queries up to half a window from it have one window in common.
    """
    start = jnp.where(first < window, 0, first - window // 2)
    return start, jnp.where(last >= length - window, length, last + window // 2 + 1)
