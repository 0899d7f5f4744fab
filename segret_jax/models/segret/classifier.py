"""The RMT ImageNet classifier, whose encoder SegRet starts from."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from segret_jax.models.layers import (
    BatchNorm,
    accum_dtype,
    normal_init,
)
from segret_jax.models.segret.encoder import Encoder, EncoderOptions
from segret_jax.models.segret.variants import STAGES, Variant


class Classifier(nnx.Module):
    """The RMT ImageNet classifier, for checking converted weights; evaluation only.

    Token-labeled classifiers carry a second head on stage 4's tokens, whose largest logits are
    added with weight one half.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int = 1000,
        token_head: bool = False,
        options: EncoderOptions | None = None,
        matmul_precision: str = "default",
        rngs: nnx.Rngs,
    ):
        options = options or EncoderOptions(rotary=True, ffn_conv=True)
        dtype, channels = options.dtype, variant.widths[-1]
        self.encoder = Encoder(variant, drop_path=0.0, options=options, rngs=rngs)
        self.proj = nnx.Linear(channels, 1024, kernel_init=normal_init(), dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(1024, dtype=dtype)
        self.head = nnx.Linear(1024, num_classes, kernel_init=normal_init(), rngs=rngs)
        self.has_token_head = token_head
        self.matmul_precision = matmul_precision
        if token_head:
            self.aux_head = nnx.Linear(channels, num_classes, kernel_init=normal_init(), rngs=rngs)

    def __call__(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b k"]:
        return self.stages(image)["logits"]

    def stages(self, image: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Return the maps of the encoder's stages, and the logits."""
        with jax.default_matmul_precision(self.matmul_precision):
            maps = self.encoder(image)
            return dict(zip(STAGES, (*maps, self.classify(maps[-1])), strict=True))

    def classify(self, tokens: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Return the logits of stage 4's tokens."""
        features = jax.nn.silu(self.norm(self.proj(tokens)))
        pooled = jnp.mean(features, (1, 2), dtype=accum_dtype(features.dtype))
        logits = self.head(pooled)
        if self.has_token_head:
            logits = logits + 0.5 * jnp.max(self.aux_head(tokens), axis=(1, 2))
        return logits
