"""The published sizes of SegMAN's encoder and decoder, as plain numbers."""

import dataclasses

MIN_SIDE = 193  # of an image: five halvings that round up leave 7 pixels, the side of a window
STAGES = ("c1", "c2", "c3", "c4", "logits")  # what `stages` of a model returns


@dataclasses.dataclass(frozen=True)
class Variant:
    """One published size; tuples have an entry per stage.

    `windows` are the sides of the neighborhoods; the FFN has ⌊ratio·width⌋ hidden channels.
    `drop_path` is the rate of the last block, in training on ADE20K.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    ffn_ratios: tuple[float, ...]
    layer_scale: bool
    drop_path: float
    decoder_channels: int
    projection_channels: int


VARIANTS = {
    "tiny": Variant(
        widths=(32, 64, 144, 192), depths=(2, 2, 4, 2), heads=(1, 2, 4, 8), windows=(11, 9, 9, 7),
        ffn_ratios=(4.0, 4.0, 3.0, 3.0), layer_scale=False, drop_path=0.0,
        decoder_channels=128, projection_channels=192,
    ),
    "small": Variant(
        widths=(64, 144, 288, 512), depths=(2, 2, 10, 4), heads=(2, 4, 8, 16),
        windows=(11, 9, 7, 7), ffn_ratios=(4.0, 4.0, 3.4, 3.4),
        layer_scale=False, drop_path=0.15,
        decoder_channels=144, projection_channels=288,
    ),
    "base": Variant(
        widths=(96, 160, 364, 560), depths=(4, 4, 18, 4), heads=(4, 8, 13, 20),
        windows=(11, 9, 7, 7), ffn_ratios=(4.0, 4.0, 3.0, 3.0), layer_scale=True, drop_path=0.25,
        decoder_channels=180, projection_channels=320,
    ),
    # The drop path rate of large is not published: base's.
    "large": Variant(
        widths=(96, 192, 432, 640), depths=(4, 4, 28, 4), heads=(4, 8, 12, 20),
        windows=(11, 9, 7, 7), ffn_ratios=(4.0, 4.0, 3.0, 3.0), layer_scale=True, drop_path=0.25,
        decoder_channels=224, projection_channels=432,
    ),
}  # fmt: skip
