"""The examples run as they are written, on small data."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from segret_jax.data.synthetic import SyntheticSource
from segret_jax.visualize.pictures import save_png

EXAMPLES = Path(__file__).parents[1] / "examples"
CLASSES = Path("segret_jax/data/class_tables/synthetic.json")


def write_folder(root: Path) -> Path:
    """Write generated scenes as a user has photographs: PNG images, labels of class ids."""
    for seed, split in enumerate(("training", "validation")):
        source = SyntheticSource(seed=seed, num_images=4, size=(96, 128))
        for i in range(4):
            save_png(source[i]["image"], root / "images" / split / f"{i}.png")
            save_png(source[i]["label"], root / "annotations" / split / f"{i}.png")
    return root


@pytest.mark.slow
@pytest.mark.usefixtures("mini")
def test_train_on_a_folder_and_predict(tmp_path):
    root = write_folder(tmp_path / "data")
    train = runpy.run_path(str(EXAMPLES / "train_on_a_folder.py"))["main"]
    table = EXAMPLES.parent / CLASSES
    score = train(str(root), str(table), str(tmp_path / "run"), steps=2)
    assert 0 <= score <= 1
    predict = runpy.run_path(str(EXAMPLES / "predict_a_photograph.py"))["main"]
    shares = predict(str(tmp_path / "run"), str(root / "images/validation/0.png"))
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


@pytest.mark.usefixtures("mini")
def test_the_loss_of_a_loop_of_ones_own_falls():
    losses = runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"](steps=5, size=32)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
