"""SegRet-base on ADE20K.

    segret train --config ade_base --config.data.root=DIR

mIoU 51.63 single-scale, 52.13 multi-scale:
published, not reproduced here yet; needs ImageNet weights.
160,000 steps, global batch 16. Forecast of the training memory in float32, not
measured: 3.0 GB per 512×512 image, beside 0.8 GB for the parameters, their gradients
and AdamW's moments.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.variant = "base"
    config.data.dataset = "ade20k"
    return config
