"""SegRet: the Vision RetNet encoder and the zero-initialised residual decoder as one model."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from segret_jax.config import ModelConfig
from segret_jax.models.decay import Decay
from segret_jax.models.decoder import Decoder
from segret_jax.models.kernels import Kernels
from segret_jax.models.layers import SampleKeys
from segret_jax.models.rmt import VARIANTS, Encoder, EncoderOptions


def encoder_options(config: ModelConfig) -> EncoderOptions:
    """Return the encoder's share of the settings."""
    return EncoderOptions(
        rotary=config.rotary,
        ffn_conv=config.ffn_conv,
        decay=Decay(config.decay),
        max_scores=config.max_scores,
        kernels=Kernels(config.kernels),
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


class SegRet(nnx.Module):
    """Map normalized images to class logits at stride 4.

    Input sides may be any size: a side of n pixels gives ⌈n/4⌉ logits. Source: SegRet,
    arXiv 2502.14014, and the released code where the two differ.
    """

    stride = 4  # of the logits: a side of n pixels gives ⌈n/stride⌉; what predicts relies on it

    def __init__(self, config: ModelConfig, num_classes: int, *, rngs: nnx.Rngs):
        variant = VARIANTS[config.variant]
        options = encoder_options(config)
        drop_path = config.drop_path if config.drop_path >= 0 else variant.drop_path
        self.encoder = Encoder(variant, drop_path=drop_path, options=options, rngs=rngs)
        self.decoder = Decoder(
            variant.widths,
            config.decoder_channels or variant.decoder_channels,
            num_classes,
            zero_branch=config.zero_branch,
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
        loop: bool = False,
        capability: float | None = None,
    ) -> Float[Array, "b h w k"]:
        """Return float32 logits; `train` uses and updates batch statistics.

        `keys` are needed for training with drop path and dropout. `loop`: see `Encoder`;
        `capability`, of the GPUs that will run it: see `blocked_retention`.
        """
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image, train=train, keys=keys, loop=loop, capability=capability)
            return self.decoder(maps, train=train, keys=keys)
