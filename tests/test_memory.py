"""Peak memory of a whole process, at sizes where the score matrix would not fit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segret_jax.convert.exporting import write_tensors
from tests import golden_weights as golden

LABEL_MAP = """
import sys
import numpy as np
from benchmarks.machine import peak_memory
from segret_jax.config import EvalConfig, ModelConfig
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.factory import build

config = EvalConfig(resize_target=(2048, 1024), scales=tuple(map(float, sys.argv[2:])))
predictor = Predictor(build(ModelConfig(), int(sys.argv[1]), seed=0), config)
image = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3)).astype(np.uint8)
assert predictor.label_map(image).shape == (1024, 2048)
print(peak_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "scales", "bound"), [(150, (1.0,), 3e9), (171, (0.5, 1.75), 8e9)]
)
def test_a_cityscapes_image_is_labeled_within(
    classes: int, scales: tuple[float, ...], bound: float
):
    """The original takes 7.0 GB whole: its score matrix alone is 2.1 GB, and it holds several.

    At 1.75 the score matrix of one block alone would be 20 GB, all logits 1.4 GB a view.
    """
    command = [sys.executable, "-c", LABEL_MAP, str(classes), *map(str, scales)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(result.stdout) < bound


CONVERT = """
import re, sys
from pathlib import Path
from segret_jax.cli.convert import main

main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_a_file_of_400_mb_is_converted_within_1_5_gb(tmp_path: Path) -> None:
    computed = ("Relpos", "num_batches_tracked")
    shapes = {
        k: s for k, s in golden.keys("segret_large").items() if not any(c in k for c in computed)
    }
    file = tmp_path / "large.safetensors"
    write_tensors(file, {k: np.ones(shape, np.float32) for k, shape in shapes.items()}, {})
    assert file.stat().st_size > 3.8e8
    command = [sys.executable, "-c", CONVERT, str(file), str(tmp_path / "large")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(result.stdout.splitlines()[-1]) * 1024 < 1.5e9
