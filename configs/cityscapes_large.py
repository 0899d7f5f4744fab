"""SegRet-large on Cityscapes.

    segret train --config cityscapes_large --config.data.root=DIR

mIoU 83.36 single-scale, 83.91 multi-scale:
published, not reproduced here yet; needs ImageNet weights.
160,000 steps, global batch 8. Forecast of the training memory in float32, not
measured: 8.7 GB per 512×1024 image, beside 1.5 GB for the parameters, their gradients
and AdamW's moments.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.variant = "large"
    config.data.dataset = "cityscapes"
    config.data.crop = (512, 1024)
    config.data.resize_base = (4096, 1024)
    config.train.batch_size = 8
    config.eval.resize_target = (2048, 1024)
    config.eval.multiple_of = 1  # no second resize
    return config
