"""SegRet-tiny on your own data, sized to it and to this machine in the time that you give.

Before the first step it chooses crop, batch, number of steps and learning rate from the number
and the size of the images, the memory that is free, and the speed of the device, and says so in
one line. The run's config.json keeps them: a run that goes on does not choose again.
With --config.init_from=WEIGHTS the learning rate is lower. --config.KEY=VALUE sets any of them.

Command: segret train --config own --config.data.dataset=FILE.json \
    --config.data.root=DIR --config.train.minutes=60
"""

from segret_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.dataset = "FILE.json"
    config.data.crop = (0, 0)
    config.data.resize_base = (0, 0)
    config.data.resize_ratio = (0.6, 1.5)
    config.optim.learning_rate = 0.0
    config.train.minutes = 60.0
    config.train.steps = 0
    config.train.batch_size = 0
    config.train.log_every = 20
    config.train.save_every = 500
    config.train.eval_every = 0
    config.eval.resize_target = (0, 0)
    config.eval.multiple_of = 1
    return config
