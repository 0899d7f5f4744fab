"""SegMAN-large on ADE20K.

    segret train --config segman_large_ade --config.data.root=DIR

mIoU 53.2 single-scale:
published, not reproduced here yet; needs ImageNet weights.
160,000 steps, global batch 16. Forecast of the training memory in float32, not
measured: 6.3 GB per 512×512 image, beside 1.5 GB for the parameters, their gradients
and AdamW's moments.
The drop path rate is not published: it is base's.
"""

from segret_jax.config import Config, choose_family


def get_config() -> Config:
    config = Config()
    choose_family(config.model, "segman")
    config.model.variant = "large"
    config.data.dataset = "ade20k"
    config.optim.learning_rate = 6e-5
    config.optim.poly_power = 1.0
    config.optim.warmup_steps = 1_500
    return config
