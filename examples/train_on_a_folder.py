"""Train on a folder of images and labels, and print the score.

    python examples/train_on_a_folder.py FOLDER CLASSES.json RUN

The folder holds images/{training,validation} and annotations/{training,validation}; the JSON file
names the classes (docs/data.md).
"""

import sys
from pathlib import Path

from segret_jax.config import Config, validate
from segret_jax.training.loop import train


def main(root: str, classes: str, workdir: str, *, steps: int = 1000) -> float:
    """Return the mIoU on the validation images."""
    config = Config()
    config.data.dataset, config.data.root = classes, root
    config.data.crop = (128, 128)
    config.data.resize_base = config.eval.resize_target = (192, 128)  # (long, short) side
    config.optim.learning_rate = 1e-3
    config.train.steps, config.train.batch_size = steps, 4
    config.train.eval_every = steps
    result = train(validate(config), Path(workdir))
    assert result is not None  # it was not stopped
    return result.metrics.mean_iou


if __name__ == "__main__":
    print(f"mIoU {100 * main(*sys.argv[1:4]):.1f}")
