"""SegRet-tiny on generated street scenes: the five-minute demonstration.

Measured: mIoU 80.5 on 64 scenes never seen, after 1,600 training scenes.

Command: make demo, or segret train --config demo
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.model.drop_path = 0.0  # a short run has nothing to gain from it
    config.data.crop = (128, 160)
    config.data.resize_base = (160, 128)
    config.data.resize_ratio = (1.0, 1.5)
    config.optim.learning_rate = 2e-3
    config.optim.beta2 = 0.99  # a memory of 100 steps
    config.optim.norm_rules = False  # from scratch, the encoder's norms learn at the full rate
    config.optim.warmup_steps = 40
    config.train.steps = 400
    config.train.batch_size = 4  # more steps from the same images
    config.train.log_every = 10
    config.train.eval_every = 200
    config.eval.resize_target = (160, 128)
    return config
