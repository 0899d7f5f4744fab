"""Peak memory of a whole process, at sizes where the score matrix would not fit."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_whole_cityscapes_image_stays_under_3_gb():
    """The original takes 7.0 GB: its score matrix alone is 2.1 GB, and it holds several."""
    command = "-m benchmarks.model --variant tiny --mode labels --size 1024x2048 --repeats 1"
    result = subprocess.run(
        [sys.executable, *command.split()], check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout)["peak_memory_mb"] < 3000


LARGEST_VIEW = """
import resource
import numpy as np
from segret_jax.config import EvalConfig, ModelConfig
from segret_jax.evaluation.inference import Predictor
from segret_jax.training.state import build

config = EvalConfig(resize_target=(2048, 1024), scales=(0.5, 1.75))
predictor = Predictor(*build(ModelConfig(), 171, seed=0), config)
image = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3)).astype(np.uint8)
assert predictor.label_map(image).shape == (1024, 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_largest_scale_of_multi_scale_evaluation_stays_under_8_gb():
    """At 1.75 the score matrix of one block alone would be 20 GB, all logits 1.4 GB a view."""
    command = [sys.executable, "-c", LARGEST_VIEW]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(result.stdout) < 8e6  # KiB
