"""SegRet's own settings. Free of JAX."""

from dataclasses import dataclass

from segret_jax.settings import setting


@dataclass(slots=True, kw_only=True)
class SegRetSettings:
    """What SegRet has beside the settings of every model. Defaults are the released code's."""

    decoder_channels: int = setting(0, "0: the variant's own (256, 256, 256, 512)", minimum=0)
    zero_branch: bool = setting(
        True, "False: the paper's ablation, F_i = Linear_i(f_i)", shared=True
    )
    rotary: bool = setting(
        False, "rotate queries and keys, as the ImageNet classifier", shared=True
    )
    ffn_conv: bool = setting(False, "convolve in the FFN, as the ImageNet classifier", shared=True)
    token_head: bool = setting(False, "of a classifier: it was trained with token labels")
    decay: str = setting(
        "additive", "as the released code, or post_softmax, the paper's wording",
        choices=("additive", "post_softmax"), shared=True,
    )  # fmt: skip
    max_scores: int = setting(
        2**25, "of one image in a block of retention; GPU and TPU kernels choose", above=0,
        may_change=True,
    )  # fmt: skip
