"""The RMT ImageNet classifier, whose encoder SegRet starts from, and what training takes of it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Platform
from segret_jax.models.layers import BatchNorm, accum_dtype, normal_init
from segret_jax.models.segret.encoder import build_encoder, encoder_options
from segret_jax.models.segret.variants import STAGES, VARIANTS

EXTRAS = {"rotary": "the rotation of queries and keys", "ffn_conv": "the FFN's convolutions"}


class Classifier(nnx.Module):
    """The RMT ImageNet classifier, for checking converted weights; evaluation only.

        logits = Head(mean over tokens of SiLU(BN(Proj x)))

    for the tokens x of stage 4. Classifiers trained with token labels have a second head on x,
    whose largest logits are added with weight one half.
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
        self.has_token_head = config.settings.token_head
        self.matmul_precision = config.matmul_precision
        if self.has_token_head:
            self.aux_head = nnx.Linear(channels, num_classes, kernel_init=normal_init(), rngs=rngs)

    def __call__(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b k"]:
        """Return float32 logits.

        Args:
            image: Normalized RGB.

        Returns:
            Logits of the k classes.
        """
        return self.stages(image)["logits"]

    def stages(self, image: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Return the maps that `segret verify` compares.

        Args:
            image: Normalized RGB.

        Returns:
            {name: map} of the encoder's four stages and of the logits, by `STAGES`.
        """
        with jax.default_matmul_precision(self.matmul_precision):
            *maps, tokens = self.encoder(image)
            features = jax.nn.silu(self.norm(self.proj(tokens)))
            pooled = jnp.mean(features, (1, 2), dtype=accum_dtype(features.dtype))
            logits = self.head(pooled)
            if self.has_token_head:
                logits = logits + 0.5 * jnp.max(self.aux_head(tokens), axis=(1, 2))
            return dict(zip(STAGES, (*maps, tokens, logits), strict=True))


def may_differ(model: ModelConfig) -> list[str]:
    """Return the settings of `model` in which a classifier to start from may differ."""
    return ["zero_branch", *_left_out(model)]


def takes(name: str, model: ModelConfig) -> bool:
    """Return whether `model` starts from the classifier's tensor of this name."""
    return "/encoder/" in name and (model.settings.ffn_conv or "/ffn/dwconv/" not in name)


def lost(theirs: ModelConfig, ours: ModelConfig) -> dict[str, str]:
    """Return {setting that keeps it: part} for the parts of `theirs` that `ours` leaves out."""
    return {key: EXTRAS[key] for key in _left_out(ours) if getattr(theirs.settings, key)}


def _left_out(model: ModelConfig) -> list[str]:
    return [key for key in EXTRAS if not getattr(model.settings, key)]
