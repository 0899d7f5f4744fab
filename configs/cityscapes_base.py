"""SegRet-base on Cityscapes.

    segret train --config cityscapes_base --config.data.root=DIR

mIoU 83.28 single-scale, 83.87 multi-scale (in the paper's text 83.17, 83.8):
published, not reproduced here yet; needs ImageNet weights.
160,000 steps, global batch 8. Forecast of the training memory in float32, not
measured: 6.0 GB per 512×1024 image, beside 0.8 GB for the parameters, their gradients
and AdamW's moments.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.variant = "base"
    config.data.dataset = "cityscapes"
    config.data.crop = (512, 1024)
    config.data.resize_base = (4096, 1024)
    config.optim.norm_rules = False
    config.optim.poly_power = 1.0
    config.optim.warmup_steps = 1_500
    config.train.batch_size = 8
    config.eval.resize_target = (2048, 1024)
    config.eval.multiple_of = 1  # no second resize
    return config
