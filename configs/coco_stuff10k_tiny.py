"""SegRet-tiny on COCO-Stuff10k.

    segret train --config coco_stuff10k_tiny --config.data.root=DIR

mIoU 42.22 single-scale, 43.32 multi-scale:
published, not reproduced here yet; needs ImageNet weights.
80,000 steps, global batch 16. Forecast of the training memory in float32, not
measured: 1.4 GB per 512×512 image, beside 0.2 GB for the parameters, their gradients
and AdamW's moments.
The paper says lr 1e-4, weight decay 0.01; the released configuration, shipped here, 2e-4 and 1e-4.
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.dataset = "coco_stuff10k"
    config.optim.learning_rate = 2e-4
    config.optim.weight_decay = 1e-4
    config.optim.warmup_steps = 1_500
    config.train.steps = 80_000
    return config
