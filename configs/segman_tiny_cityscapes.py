"""SegMAN-tiny on Cityscapes.

    segret train --config segman_tiny_cityscapes --config.data.root=DIR

mIoU 80.3 single-scale, by a sliding window:
published, not reproduced here yet; needs ImageNet weights.
160,000 steps, global batch 8. Forecast of the training memory in float32, not
measured: 2.9 GB per 1024×1024 image, beside 0.1 GB for the parameters, their gradients
and AdamW's moments.
The released configuration, and so probably its weights, has 150 classes; this one has 19.
"""

from segret_jax.config import Config, choose_family


def get_config() -> Config:
    config = Config()
    choose_family(config.model, "segman")
    config.data.dataset = "cityscapes"
    config.data.crop = (1024, 1024)
    config.data.resize_base = (2048, 1024)
    config.optim.learning_rate = 6e-5
    config.optim.poly_power = 1.0
    config.optim.warmup_steps = 1_500
    config.train.batch_size = 8
    config.train.eval_every = 4_000
    config.eval.resize_target = (2048, 1024)
    config.eval.mode = "slide"
    config.eval.window = (1024, 1024)
    config.eval.stride = (768, 768)
    return config
