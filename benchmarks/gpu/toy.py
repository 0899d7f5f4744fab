"""Models for dry runs: every kind of layer of the published ones, compiled in seconds."""

from segret_jax.models.segman import variants as segman
from segret_jax.models.segret import variants as segret

NAME = "toy"
TOY = segret.Variant(
    widths=(16, 32, 32, 32), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1),
    decay_spans=(4.0, 4.0, 6.0, 6.0), ffn_ratios=(2, 2, 2, 2),
    decomposed=(True, True, False, False),
    layer_scale=(False, False, False, True), drop_path=0.1, decoder_channels=16,
)  # fmt: skip
SEGMAN_TOY = segman.Variant(
    widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), windows=(5, 5, 3, 3),
    ffn_ratios=(2.0, 2.0, 2.0, 2.0), layer_scale=True, drop_path=0.1,
    decoder_channels=16, projection_channels=16,
)  # fmt: skip


def add() -> None:
    """Make them known by name in this process."""
    segret.VARIANTS[NAME] = TOY
    segman.VARIANTS[NAME] = SEGMAN_TOY
