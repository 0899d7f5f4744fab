"""The published sizes of SegRet's encoder and decoder, as plain numbers."""

import dataclasses

STAGES = ("c1", "c2", "c3", "c4", "logits")  # what `stages` of a model returns


@dataclasses.dataclass(frozen=True)
class Variant:
    """One published size; tuples have an entry per stage.

    Head i of n decays by log(1 − 2^(−2 − decay_span·i/n)). `decomposed` stages attend along rows,
    then columns; `layer_scale` stages have γ. `drop_path` is the rate of the last block.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    decay_spans: tuple[float, ...]
    ffn_ratios: tuple[int, ...]
    decomposed: tuple[bool, ...]
    layer_scale: tuple[bool, ...]
    drop_path: float
    decoder_channels: int


VARIANTS = {
    "tiny": Variant(
        widths=(64, 128, 256, 512), depths=(2, 2, 8, 2), heads=(4, 4, 8, 16),
        decay_spans=(4.0, 4.0, 6.0, 6.0), ffn_ratios=(3, 3, 3, 3),
        decomposed=(True, True, False, False), layer_scale=(False, False, False, False),
        drop_path=0.1, decoder_channels=256,
    ),
    "small": Variant(
        widths=(64, 128, 256, 512), depths=(3, 4, 18, 4), heads=(4, 4, 8, 16),
        decay_spans=(4.0, 4.0, 6.0, 6.0), ffn_ratios=(4, 4, 3, 3),
        decomposed=(True, True, True, False), layer_scale=(False, False, False, False),
        drop_path=0.15, decoder_channels=256,
    ),
    "base": Variant(
        widths=(80, 160, 320, 512), depths=(4, 8, 25, 8), heads=(5, 5, 10, 16),
        decay_spans=(5.0, 5.0, 6.0, 6.0), ffn_ratios=(4, 4, 3, 3),
        decomposed=(True, True, True, False), layer_scale=(False, False, True, True),
        drop_path=0.4, decoder_channels=256,
    ),
    "large": Variant(
        widths=(112, 224, 448, 640), depths=(4, 8, 25, 8), heads=(7, 7, 14, 20),
        decay_spans=(6.0, 6.0, 6.0, 6.0), ffn_ratios=(4, 4, 3, 3),
        decomposed=(True, True, True, False), layer_scale=(False, False, True, True),
        drop_path=0.5, decoder_channels=512,
    ),
}  # fmt: skip
