"""The weights that ship with the package."""

import numpy as np
import pytest

import segret_jax
from segret_jax.checkpoint import folders


@pytest.mark.parametrize("name", folders.shipped())
def test_shipped_weights_are_small_and_predict(name):
    folder = folders.shipped()[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 30e6
    model = segret_jax.load(name, overrides={"eval.resize_target": (64, 64)})
    gray = np.full((48, 64, 3), 128, np.uint8)
    assert model.predict(gray).label_map.max() < model.classes.num_classes
    assert (folder / "README.md").is_file()


def test_some_weights_ship():
    assert folders.default_model() in folders.shipped()
