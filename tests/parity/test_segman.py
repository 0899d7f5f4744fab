"""SegMAN, read from PyTorch's tensors, against what the released PyTorch code computed."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.config import ModelConfig
from segret_jax.convert.importing import Imported, import_tensors
from segret_jax.models.factory import abstract
from segret_jax.models.forward import stage_maps
from segret_jax.models.kernels import platform_of
from tests import golden_weights as golden

pytestmark = pytest.mark.usefixtures("optimized")  # the program that users run


def imported(name: str) -> Imported:
    return import_tensors(golden.tensors(name), ModelConfig(matmul_precision="highest"))


def assert_close(actual: Any, expected: np.ndarray) -> None:
    """Compare by the bounds of the goldens, relative to the RMS of what is expected."""
    difference = np.asarray(actual, np.float64) - expected
    rms = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    assert np.sqrt(np.mean(difference**2)) <= 1e-5 * rms
    assert np.abs(difference).max() <= 1e-4 * rms


@pytest.mark.parametrize(
    ("variant", "case", "kernels"),
    [
        ("tiny", 0, "auto"),
        pytest.param("tiny", 0, "reference", marks=pytest.mark.slow),
        pytest.param("tiny", 1, "auto", marks=pytest.mark.slow),
        pytest.param("small", 0, "auto", marks=pytest.mark.slow),
        pytest.param("base", 0, "auto", marks=pytest.mark.slow),
        pytest.param("large", 0, "auto", marks=pytest.mark.slow),
    ],
)
def test_every_stage_and_the_logits_equal_the_original(variant: str, case: int, kernels: str):
    expected, result = golden.load(f"segman_{variant}"), imported(f"segman_{variant}")
    model = dataclasses.replace(result.recognized.model, kernels=kernels)
    graph = abstract(model, 150, platform=platform_of(jax.devices())).graph
    image = golden.noise(f"input/{case}", tuple(expected[f"{case}/input_shape"]))
    forward = jax.jit(lambda variables, image: stage_maps(graph, variables, image))
    maps = forward(result.bundle.variables, image.transpose(0, 2, 3, 1))
    for name in ("c1", "c2", "c3", "c4", "logits"):
        nchw, key = np.transpose(maps[name], (0, 3, 1, 2)), f"{case}/{name}"
        theirs = expected[key]
        assert_close(nchw[0, : len(theirs)], theirs)
        errors = golden.map_errors(nchw, expected, key)
        assert max(errors[f"{key}_mean"], errors[f"{key}_rms"]) <= 1e-5  # of every channel


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_imagenet_classifiers_equal_the_original(variant: str):
    result = imported(f"segman_encoder_{variant}")
    image = golden.noise("input/cls", (1, 3, 224, 224)).transpose(0, 2, 3, 1)
    graph = result.bundle.graph
    logits = jax.jit(lambda v, x: stage_maps(graph, v, x)["logits"])(result.bundle.variables, image)
    assert_close(logits, golden.load("segman_imagenet")[variant[0]])
