"""SegRet-large on ADE20K.

    segret train --config ade_large --config.data.root=DIR

mIoU 52.0 single-scale, 52.23 multi-scale:
published, not reproduced here yet; needs ImageNet weights.
160,000 steps, global batch 16. Forecast of the training memory in float32, not
measured: 6.8 GB per 640×640 image, beside 1.5 GB for the parameters, their gradients
and AdamW's moments.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.variant = "large"
    config.data.dataset = "ade20k"
    config.data.crop = (640, 640)
    config.data.resize_base = (2048, 640)
    config.eval.resize_target = (2048, 640)
    return config
