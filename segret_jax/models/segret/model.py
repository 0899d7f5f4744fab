"""SegRet: the Vision RetNet encoder and the zero-initialized residual decoder as one model."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Platform
from segret_jax.models.layers import MapSize, SampleKeys, strided
from segret_jax.models.segret.decoder import Decoder
from segret_jax.models.segret.encoder import build_encoder, encoder_options
from segret_jax.models.segret.variants import STAGES, VARIANTS


class SegRet(nnx.Module):
    """Map normalized images to class logits at stride 4.

    Images may have any size: a side of n pixels gives ⌈n/4⌉ logits. Source: SegRet (arXiv
    2502.14014), and the released code where the two differ.
    """

    stride = 4  # of the logits; prediction relies on ⌈n/stride⌉ logits for a side of n pixels
    takes_size = True

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        platform: Platform = ANY_PLATFORM,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights.

        Args:
            config: The settings of the model.
            num_classes: The number of classes of the logits.
            platform: The devices that will run the model (`kernels.platform_of`).
            rngs: The source of the initial weights.
        """
        variant = VARIANTS[config.variant]
        options = encoder_options(config, platform)
        drop_path = config.drop_path if config.drop_path >= 0 else variant.drop_path
        self.encoder = build_encoder(variant, drop_path=drop_path, options=options, rngs=rngs)
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
        size: MapSize | None = None,
    ) -> Float[Array, "b h w k"]:
        """Return float32 logits.

        Args:
            image: Normalized RGB.
            train: Whether to normalize by the batch, and to update the running statistics.
            keys: The randomness of drop path and dropout in training; None: neither.
            size: The true height and width of padded images, in evaluation. The logits within
                them are those of the unpadded images, up to rounding.

        Returns:
            Logits of the k classes; h = ⌈H/4⌉ and w = ⌈W/4⌉.
        """
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image, train=train, keys=keys, size=size)
            return self.decoder(maps, train=train, keys=keys, size=strided(size, 4))

    def stages(self, image: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Return the maps that `segret verify` compares.

        Args:
            image: Normalized RGB.

        Returns:
            {name: map} of the encoder's four stages and of the logits, by `STAGES`.
        """
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image)
            return dict(zip(STAGES, (*maps, self.decoder(maps)), strict=True))
