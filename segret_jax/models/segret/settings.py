"""SegRet's own settings. Free of JAX."""

from dataclasses import dataclass

from segret_jax.settings import setting


@dataclass(slots=True, kw_only=True)
class SegRetSettings:
    """Settings beside those of every model. Defaults are the released code's."""

    decoder_channels: int = setting(0, minimum=0)
    """Channels of the decoder; 0: the variant's own (256, 256, 256, 512)."""
    zero_branch: bool = setting(True, shared=True)
    """False: the paper's ablation, F_i = Linear_i(f_i)."""
    rotary: bool = setting(False, shared=True)
    """Rotate queries and keys by their position, as the RMT ImageNet classifier does."""
    ffn_conv: bool = setting(False, shared=True)
    """Add a convolution to the feed-forward network, as the RMT ImageNet classifier does."""
    token_head: bool = setting(False)
    """Of a classifier: it has a second head, trained with token labels."""
    decay: str = setting("additive", choices=("additive", "post_softmax"), shared=True)
    """Where the decay enters: before the softmax (released code), or after it (paper, eq. 4)."""
    max_scores: int = setting(2**25, above=0, may_change=True)
    """Retention scores of one image in a block; GPU and TPU kernels choose their own."""
