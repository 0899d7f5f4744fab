"""Peak memory of a whole process, at sizes where the score matrix would not fit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segret_jax.convert.exporting import write_tensors
from tests import golden_weights as golden

LABELING = """
import sys
import jax
import numpy as np
from benchmarks.machine import peak_memory
from segret_jax.config import EvalConfig, ModelConfig, choose_family
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.factory import build
from segret_jax.models.kernels import platform_of

family, num_classes, times, *scales = sys.argv[1:]
choose_family(model := ModelConfig(), family)
config = EvalConfig(resize_target=(2048, 1024), scales=tuple(map(float, scales)))
bundle = build(model, int(num_classes), seed=0, platform=platform_of(jax.devices()))
predictor = Predictor(bundle, config)
image = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3)).astype(np.uint8)
for _ in range(int(times)):
    assert predictor.label_map(image).shape == (1024, 2048)
print(peak_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "num_classes", "times", "scales", "bound"),
    [
        # The original takes 7.0 GB: its score matrix alone is 2.1 GB, and it holds several.
        pytest.param("segret", 150, 2, (1.0,), 3e9, id="segret"),
        # At 1.75 the score matrix of one block alone would be 20 GB, all logits 1.4 GB a view.
        pytest.param("segret", 171, 1, (0.5, 1.75), 8e9, id="segret at scales of evaluation"),
        pytest.param("segman", 150, 2, (1.0,), 1.5e9, id="segman"),
    ],
)
def test_labeling_a_cityscapes_image_stays_within(
    family: str, num_classes: int, times: int, scales: tuple[float, ...], bound: float
):
    arguments = (family, num_classes, times, *scales)
    command = [sys.executable, "-c", LABELING, *map(str, arguments)]
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
