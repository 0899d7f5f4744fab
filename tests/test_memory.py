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
