"""The checks of a GPU run: what counts as right."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import operations
from benchmarks.gpu import checks, toy
from segret_jax.models.segman import variants as segman
from tests import golden_weights

SETTINGS = {
    "neighborhood": {"variant": toy.NAME, "stage": 3, "size": (224, 224)},
    "scan": {"variant": toy.NAME, "stage": 2, "size": (224, 224)},
    "retention": {"form": "decomposed", "size": (3, 5), "heads": 2, "width": 16},
}
GRADIENTS = {
    "neighborhood": {"q", "k", "v", "bias"},
    "scan": {"x", "projections", *(f"weights/{name}" for name in operations.ScanWeights._fields)},
    "retention": {"q", "k", "v"},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(segman.VARIANTS, toy.NAME, toy.SEGMAN_TOY)
    monkeypatch.setattr(operations, "rates", lambda dtype: {"bytes": 1e9})


def check(operation: str, dtype: str = "float32") -> dict[str, Any]:
    settings = {**SETTINGS[operation], "batch": 1, "dtype": dtype, "repeats": 1}
    ((figure, found),) = checks.kernels(operation, **settings)()
    assert figure == "kernels"
    return found


@pytest.mark.parametrize("operation", SETTINGS)
def test_kernels_are_right_with_every_gradient(operation):
    found = check(operation)
    assert found["errors"].keys() == {"output", "output alone"} | GRADIENTS[operation]
    assert found["ok"], found["errors"]
    assert found["passes"].keys() == operations.PASSES.keys()


@pytest.mark.parametrize(
    ("dtype", "wrong", "ok"),
    [
        ("float32", lambda y: y * 1.001, False),
        ("bfloat16", lambda y: y * 1.001, True),
        ("bfloat16", lambda y: y * 1.05, False),
        ("float32", lambda y: y.at[0, 0, 0].set(jnp.nan), False),
    ],
)
def test_what_differs_from_the_formulas_is_wrong(monkeypatch, dtype, wrong: Callable, ok):
    """Attention, whose products are in bfloat16 with bfloat16 arrays."""
    _replace(monkeypatch, "neighborhood", wrong)
    assert check("neighborhood", dtype)["ok"] == ok


def test_the_scan_computes_in_float32_whatever_its_tokens(monkeypatch):
    assert check("scan", "bfloat16")["ok"]
    _replace(monkeypatch, "scan", lambda y: y * 1.001)
    assert not check("scan", "bfloat16")["ok"]


def _replace(monkeypatch: pytest.MonkeyPatch, operation: str, wrong: Callable) -> None:
    make = checks.CASES[operation]

    def broken(**settings: Any) -> operations.Case:
        case = make(**settings)
        return dataclasses.replace(case, run=lambda **arrays: wrong(case.run(**arrays)))

    monkeypatch.setitem(checks.CASES, operation, broken)


def test_a_channel_that_the_goldens_lack_counts_by_its_mean_and_rms():
    actual = np.random.default_rng(0).standard_normal((1, 12, 4, 5))
    stored = {
        "0/c1": actual[0, :8],
        "0/c1_mean": actual[0].mean((1, 2)),
        "0/c1_rms": np.sqrt(np.square(actual[0]).mean((1, 2))),
    }
    errors = golden_weights.map_errors(actual, stored, "0/c1")
    assert max(errors.values()) < 1e-12
    actual[0, 11] += 0.1
    errors = golden_weights.map_errors(actual, stored, "0/c1")
    assert errors["0/c1"] == 0
    assert errors["0/c1_mean"] == pytest.approx(0.1, rel=0.2)
    assert errors["0/c1_rms"] > 1e-3
