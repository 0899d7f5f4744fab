"""SegRet-small on COCO-Stuff10k.

    segret train --config coco_stuff10k_small --config.data.root=DIR

mIoU 44.32 single-scale, 45.48 multi-scale:
published, not reproduced here yet; needs ImageNet weights.
60,000 steps, global batch 32. Forecast of the training memory in float32, not
measured: 1.9 GB per 512×512 image, beside 0.4 GB for the parameters, their gradients
and AdamW's moments.
The paper says batch 16, 80,000 steps; the released configuration, shipped here, 32 and 60,000.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.variant = "small"
    config.data.dataset = "coco_stuff10k"
    config.train.steps = 60_000
    config.train.batch_size = 32
    return config
