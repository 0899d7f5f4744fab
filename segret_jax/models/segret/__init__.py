"""SegRet: a Vision RetNet encoder and a zero-initialized residual decoder (arXiv 2502.14014).

This file is free of JAX: arguments are checked before it is imported.
"""

from segret_jax.models.family import Family, Implementation
from segret_jax.models.segret.settings import SegRetSettings
from segret_jax.models.segret.variants import VARIANTS


def _load() -> Implementation:
    from segret_jax.models.segret.implementation import IMPLEMENTATION

    return IMPLEMENTATION


FAMILY = Family(
    settings=SegRetSettings, variants=VARIANTS, load=_load, num_remat_stages=4, classifier="rmt"
)
