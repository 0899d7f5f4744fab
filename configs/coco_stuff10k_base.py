"""SegRet-base on COCO-Stuff10k.

    segret train --config coco_stuff10k_base --config.data.root=DIR

mIoU 45.92 single-scale, 46.06 multi-scale:
published, not reproduced here yet; needs ImageNet weights.
80,000 steps, global batch 16. Forecast of the training memory in float32, not
measured: 3.0 GB per 512×512 image, beside 0.8 GB for the parameters, their gradients
and AdamW's moments.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.variant = "base"
    config.data.dataset = "coco_stuff10k"
    config.optim.warmup_steps = 1_500
    config.train.steps = 80_000
    return config
