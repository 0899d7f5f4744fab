"""The decay of retention: how fast each head forgets with distance, and where that enters."""

import enum
import math

LogDecay = tuple[float, ...]  # per head


class Decay(enum.StrEnum):
    """Where the decay enters: before the softmax (released code) or after it (paper)."""

    ADDITIVE = "additive"
    POST_SOFTMAX = "post_softmax"


def head_log_decay(num_heads: int, *, initial: float = 2.0, span: float) -> LogDecay:
    """Return d_i = log(1 − 2^(−initial − span·i/n)) for each of n heads."""
    return tuple(math.log1p(-(2 ** (-initial - span * i / num_heads))) for i in range(num_heads))
