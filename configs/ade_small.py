"""SegRet-small on ADE20K.

    segret train --config ade_small --config.data.root=DIR

mIoU 50.7 single-scale, 51.29 multi-scale:
published, not reproduced here yet; needs ImageNet weights.
160,000 steps, global batch 16. Forecast of the training memory in float32, not
measured: 1.9 GB per 512×512 image, beside 0.4 GB for the parameters, their gradients
and AdamW's moments.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.variant = "small"
    config.data.dataset = "ade20k"
    config.optim.warmup_steps = 1_500
    return config
