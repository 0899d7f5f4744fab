"""SegRet: the Vision RetNet encoder and the zero-initialized residual decoder as one model."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform
from segret_jax.models.layers import SampleKeys
from segret_jax.models.retention.decay import Decay
from segret_jax.models.segret.decoder import Decoder
from segret_jax.models.segret.encoder import Encoder, EncoderOptions
from segret_jax.models.segret.variants import STAGES, VARIANTS


def encoder_options(config: ModelConfig, platform: Platform = ANY_PLATFORM) -> EncoderOptions:
    """Return the encoder's share of the settings."""
    settings = config.settings
    return EncoderOptions(
        rotary=settings.rotary,
        ffn_conv=settings.ffn_conv,
        decay=Decay(settings.decay),
        max_scores=settings.max_scores,
        kernels=Kernels(config.kernels),
        platform=platform,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


class SegRet(nnx.Module):
    """Map normalized images to class logits at stride 4.

    Input sides may be any size: a side of n pixels gives ⌈n/4⌉ logits. Source: SegRet,
    arXiv 2502.14014, and the released code where the two differ.
    """

    stride = 4  # of the logits: a side of n pixels gives ⌈n/stride⌉; what predicts relies on it

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        platform: Platform = ANY_PLATFORM,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights; `platform` says which devices will run the model."""
        variant = VARIANTS[config.variant]
        options = encoder_options(config, platform)
        drop_path = config.drop_path if config.drop_path >= 0 else variant.drop_path
        self.encoder = Encoder(variant, drop_path=drop_path, options=options, rngs=rngs)
        self.decoder = Decoder(
            variant.widths,
            config.settings.decoder_channels or variant.decoder_channels,
            num_classes,
            zero_branch=config.settings.zero_branch,
            kernels=options.kernels,
            dtype=options.dtype,
            rngs=rngs,
        )
        self.matmul_precision = config.matmul_precision

    def __call__(
        self,
        image: Float[Array, "b H W 3"],
        *,
        train: bool = False,
        keys: SampleKeys | None = None,
    ) -> Float[Array, "b h w k"]:
        """Return float32 logits.

        Args:
            image: normalized RGB.
            train: use and update batch statistics.
            keys: needed for training with drop path and dropout.
        """
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image, train=train, keys=keys)
            return self.decoder(maps, train=train, keys=keys)

    def stages(self, image: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Return the maps of the encoder's stages, and the logits."""
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image)
            return dict(zip(STAGES, (*maps, self.decoder(maps)), strict=True))
