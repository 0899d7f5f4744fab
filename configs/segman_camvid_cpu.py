"""SegMAN-tiny on CamVid (11 classes, 367 + 101 photographs of 480x360), from scratch, for a CPU.

Reduced size: trained on crops of photographs at 4/5 of their resolution. Scores are against the
untouched 480x360 labels.

Measured: validation mIoU 54.5. At 6.4 images/s, the speed on two quiet CPU cores, its 2,400 steps
take 50 minutes; the run itself shared them with other work.

Command: segret train --config segman_camvid_cpu --config.data.root=DIR

SegRet-tiny on the same crops, with as many steps as take the same time there (4.2 images/s):

    segret train --config camvid_tiny_cpu --config.data.root=DIR --config.data.crop=224,256 \\
        --config.data.resize_base=384,288 --config.data.resize_ratio=0.8,1.5 \\
        --config.eval.resize_target=384,288 --config.train.steps=1570

It reached 60.4 (benchmarks/results/2026-11-29-cpu-segman.md).
"""

from segret_jax.config import Config, choose_family


def get_config() -> Config:
    config = Config()
    choose_family(config.model, "segman")
    config.data.dataset = "camvid"
    config.data.crop = (224, 256)
    config.data.resize_base = (384, 288)
    config.data.resize_ratio = (0.8, 1.5)
    config.optim.learning_rate = 1e-3
    config.optim.norm_rules = False  # from scratch, encoder and decoder learn at one rate
    config.optim.warmup_steps = 50
    config.train.steps = 2_400
    config.train.batch_size = 8
    config.train.log_every = 20
    config.train.eval_every = 400
    config.eval.resize_target = (384, 288)
    return config
