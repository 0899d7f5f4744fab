"""SegRet-tiny on CamVid (11 classes, 367 + 101 photographs of 480x360), from scratch, for a GPU.

Trained and scored at full resolution. Not measured yet; configs/camvid_tiny_cpu.py is the reduced
recipe whose result the README shows.

Command: segret train --config camvid_tiny --config.data.root=DIR
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.dataset = "camvid"
    config.data.crop = (352, 480)
    config.data.resize_base = (480, 360)
    config.data.workers = 8
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 500
    config.train.steps = 10_000
    config.train.batch_size = 16
    config.train.eval_every = 1_000
    config.eval.resize_target = (480, 360)
    return config
