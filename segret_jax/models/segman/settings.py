"""SegMAN's own settings. Free of JAX."""

from dataclasses import dataclass

from segret_jax.settings import setting


@dataclass(slots=True, kw_only=True)
class SegMANSettings:
    """Settings beside those of every model. Defaults are the released code's."""

    decoder_channels: int = setting(0, minimum=0)
    """Channels of the decoder; 0: the variant's own (128, 144, 180, 224)."""
    projection_channels: int = setting(0, minimum=0)
    """Channels of the projected stages; 0: the variant's own (192, 288, 320, 432)."""
