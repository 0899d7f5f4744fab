"""SegMAN: encoder and decoder as one model."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from segret_jax.errors import InputError
from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Platform
from segret_jax.models.layers import MapSize, SampleKeys, strided
from segret_jax.models.segman.decoder import Decoder
from segret_jax.models.segman.encoder import build_encoder, encoder_options
from segret_jax.models.segman.variants import MIN_SIDE, STAGES, VARIANTS


class SegMAN(nnx.Module):
    """Map normalized images to class logits at stride 8.

    A side of n pixels needs n > 192, and ⌈n/8⌉ divisible by 4. Source: SegMAN (arXiv 2412.11890),
    and the released code where the two differ.
    """

    stride = 8  # of the logits; prediction relies on ⌈n/stride⌉ logits for a side of n pixels
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
        variant, settings = VARIANTS[config.variant], config.settings
        options = encoder_options(config, platform)
        drop_path = config.drop_path if config.drop_path >= 0 else variant.drop_path
        self.encoder = build_encoder(variant, drop_path=drop_path, options=options, rngs=rngs)
        self.decoder = Decoder(
            variant.widths,
            settings.decoder_channels or variant.decoder_channels,
            settings.projection_channels or variant.projection_channels,
            num_classes,
            options=options,
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
            size: The true height and width of padded images, in evaluation, of which the same is
                required. The logits within them are those of the unpadded images, up to rounding.

        Returns:
            Logits of the k classes; h = ⌈H/8⌉ and w = ⌈W/8⌉.

        Raises:
            InputError: The size is not admitted, or training has one image.
        """
        _check(image.shape, train=train)
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image, train=train, keys=keys, size=size)
            return self.decoder(maps, train=train, keys=keys, size=strided(size, 8))

    def stages(self, image: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Return the maps that `segret verify` compares.

        Args:
            image: Normalized RGB.

        Returns:
            {name: map} of the encoder's four stages and of the logits, by `STAGES`.
        """
        _check(image.shape)
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image)
            return dict(zip(STAGES, (*maps, self.decoder(maps)), strict=True))


def _check(shape: tuple[int, ...], *, train: bool = False) -> None:
    """Raise InputError for sizes that the network cannot take."""
    batch, height, width, _ = shape
    # The decoder divides stride 8 by 4.
    if any(side < MIN_SIDE or -(-side // 8) % 4 for side in (height, width)):
        remedy = "give multiples of 32 from 224 on"
        raise InputError(f"the input is {height}x{width}, which SegMAN does not take: {remedy}")
    if train and batch == 1:
        remedy = "its decoder normalizes one pooled value of each image: give two or more"
        raise InputError(f"SegMAN does not train with one image per batch; {remedy}")
