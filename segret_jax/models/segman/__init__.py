"""SegMAN: state-space scans with local attention, and a state-space decoder (arXiv 2412.11890).

This file is free of JAX: arguments are checked before it is imported.
"""

from segret_jax.models.family import DATASETS_BY_COUNT, Family, Implementation
from segret_jax.models.segman.settings import SegMANSettings
from segret_jax.models.segman.variants import MIN_SIDE, VARIANTS


def _load() -> Implementation:
    from segret_jax.models.segman.implementation import IMPLEMENTATION

    return IMPLEMENTATION


FAMILY = Family(
    settings=SegMANSettings,
    variants=VARIANTS,
    load=_load,
    num_remat_stages=4,
    classifier="segman_encoder",
    datasets=DATASETS_BY_COUNT | {171: "coco_stuff164k"},
    multiple_of=32,
    min_side=MIN_SIDE,
    min_batch=2,  # the decoder normalizes one pooled value of each image over the batch
)
