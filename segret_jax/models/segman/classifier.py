"""SegMAN's ImageNet classifier, and what training takes of it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Platform
from segret_jax.models.layers import BatchNorm, accum_dtype, normal_init
from segret_jax.models.segman.encoder import build_encoder, check_windows, encoder_options
from segret_jax.models.segman.variants import STAGES, VARIANTS


class Classifier(nnx.Module):
    """The ImageNet classifier, for checking converted weights; evaluation only.

        logits = Head(mean over pixels of SiLU(BN(Proj x)))

    for the map x of stage 4. The original takes 224-pixel images alone; here the bias of stage 4 is
    resized for others, as in segmentation.
    """

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
        variant, options = VARIANTS[config.variant], encoder_options(config, platform)
        dtype, channels = options.dtype, variant.widths[-1]
        self.encoder = build_encoder(variant, drop_path=0.0, options=options, rngs=rngs)
        self.proj = nnx.Linear(channels, 1024, kernel_init=normal_init(), dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(1024, dtype=dtype)
        self.head = nnx.Linear(1024, num_classes, kernel_init=normal_init(), rngs=rngs)
        self.matmul_precision = config.matmul_precision

    def __call__(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b k"]:
        """Return float32 logits.

        Args:
            image: Normalized RGB; sides above 192.

        Returns:
            Logits of the k classes.

        Raises:
            InputError: A side is shorter.
        """
        return self.stages(image)["logits"]

    def stages(self, image: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Return the maps that `segret verify` compares.

        Args:
            image: Normalized RGB; sides above 192.

        Returns:
            {name: map} of the encoder's four stages and of the logits, by `STAGES`.
        """
        check_windows(image.shape[1:3])
        with jax.default_matmul_precision(self.matmul_precision):
            *maps, last = self.encoder(image)
            features = jax.nn.silu(self.norm(self.proj(last)))
            pooled = jnp.mean(features, (1, 2), dtype=accum_dtype(features.dtype))
            return dict(zip(STAGES, (*maps, last, self.head(pooled)), strict=True))


def may_differ(model: ModelConfig) -> list[str]:
    """Return the shared settings of `model` in which a classifier may differ: there are none."""
    return []


def takes(name: str, model: ModelConfig) -> bool:
    """Return whether `model` starts from the classifier's tensor of this name."""
    return "/encoder/" in name


def lost(theirs: ModelConfig, ours: ModelConfig) -> dict[str, str]:
    """Return the parts of `theirs` that `ours` leaves out: none."""
    return {}
