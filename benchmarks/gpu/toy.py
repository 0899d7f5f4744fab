"""A model for dry runs: every kind of layer of the published ones, compiled in seconds."""

from segret_jax.models.segret.variants import VARIANTS, Variant

NAME = "toy"
TOY = Variant(
    widths=(16, 32, 32, 32), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1),
    decay_spans=(4.0, 4.0, 6.0, 6.0), ffn_ratios=(2, 2, 2, 2),
    decomposed=(True, True, False, False),
    layer_scale=(False, False, False, True), drop_path=0.1, decoder_channels=16,
)  # fmt: skip


def add() -> None:
    """Make it known by name in this process."""
    VARIANTS[NAME] = TOY
