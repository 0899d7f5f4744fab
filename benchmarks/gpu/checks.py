"""Is it right on this device: kernels against their formulas, models against the goldens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import operations
from benchmarks.gpu.worker import Figures, Measure
from benchmarks.machine import median_seconds
from benchmarks.operations import PASSES, Case
from segret_jax.config import ModelConfig
from segret_jax.convert.importing import import_tensors
from segret_jax.models.factory import abstract
from segret_jax.models.forward import stage_maps
from segret_jax.models.kernels import platform_of
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.retention.decay import head_log_decay
from segret_jax.models.retention.formulas import decomposed_retention, whole_retention
from segret_jax.trees import named_leaves
from tests import golden_weights

# Largest ‖x − exact‖ / ‖exact‖ of an output or a gradient; bfloat16 has 8 bits.
BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}
GOLDEN_BOUND = 1e-4  # of the RMS (tests/goldens/README.md)
TRITON = "__gpu$xla.gpu.triton"  # the target of the kernels' calls in a compiled program
FEW = 3  # repeats of the formulas


def retention(
    form: str, size: tuple[int, int], *, batch: int, heads: int, width: int, dtype: str
) -> Case:
    """Return one form of retention, decomposed or whole."""
    rng = np.random.default_rng(np.random.SeedSequence([*size, heads, width]))
    drawn = rng.standard_normal((4, batch, *size, heads, width)).astype(np.float32)
    q, k, v, out_grad = (jnp.asarray(x, dtype) for x in drawn)
    log_decay, (h, w) = head_log_decay(heads, initial=2.0, span=4.0), size
    is_decomposed = form == "decomposed"
    formulas = decomposed_retention if is_decomposed else whole_retention
    platform = platform_of(jax.devices())

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return blocked_retention(q, k, v, log_decay, decomposed=is_decomposed, platform=platform)

    scores = batch * heads * h * w * (h + w if is_decomposed else h * w)
    return Case(
        name=f"{form} retention",
        run=run,
        formulas=lambda q, k, v: formulas(q, k, v, log_decay),
        arrays={"q": q, "k": k * width**-0.5, "v": v},
        out_grad=out_grad,
        mult_adds=2 * scores * width,
        exponentials=scores,
        dtype=dtype,
    )


CASES: dict[str, Callable[..., Case]] = {
    "neighborhood": operations.attention, "scan": operations.scan, "retention": retention
}  # fmt: skip


def kernels(operation: str, *, dtype: str, repeats: int, **settings: Any) -> Measure:
    """Compare what the model runs with the formulas: output, all gradients, and time."""
    case = CASES[operation](**settings, dtype=dtype)
    precision = "highest" if dtype == "float32" else "default"
    programs = {
        name: operations.compiled(case, backward=backward, precision=precision)
        for name, backward in PASSES.items()
    }
    forward, both = programs.values()
    exact = case.exact()
    formulas = operations.compiled(exact, backward=True, precision="highest")

    def measure() -> Figures:
        found = named_leaves(both(*case.inputs))
        found["output alone"] = forward(*case.inputs)["output"]
        expected = named_leaves(formulas(*exact.inputs))
        expected["output alone"] = expected["output"]
        errors = {name: _error(x, expected[name]) for name, x in found.items()}
        is_right = all(errors[name] < _bound(case, x) for name, x in found.items())
        again = named_leaves(both(*case.inputs))
        same = all(bool((x == found[name]).all()) for name, x in again.items())
        del found, expected, again
        limits = operations.rates(dtype)
        yield (
            "kernels",
            {
                "errors": errors,
                "ok": is_right and same,
                "same_bits_again": same,
                "triton_calls": str(both.as_text()).count(TRITON),
                "formulas_ms": 1e3 * median_seconds(lambda: formulas(*exact.inputs), FEW),
                "passes": {
                    name: operations.measure(
                        case, programs[name], limits, backward=backward, repeats=repeats
                    )
                    for name, backward in PASSES.items()
                },
            },
        )

    return measure


def _bound(case: Case, result: jax.Array) -> float:
    return max(BOUNDS[case.dtype], BOUNDS[result.dtype.name])


def _error(x: jax.Array, exact: jax.Array) -> float:
    difference = jnp.linalg.norm((x.astype(jnp.float32) - exact).ravel())
    return float(difference / jnp.linalg.norm(exact.ravel()))


def goldens(model: str) -> Measure:
    """Compare every stage and the logits with what the released PyTorch code computes."""
    expected = golden_weights.load(model)
    settings = ModelConfig(matmul_precision="highest")
    imported = import_tensors(golden_weights.tensors(model), settings)
    found, platform = imported.recognized, platform_of(jax.devices())
    graph = abstract(found.model, found.num_classes, platform=platform).graph
    variables = jax.device_put(imported.bundle.variables)
    forward = jax.jit(lambda variables, image: stage_maps(graph, variables, image))
    cases = []
    for case in range(sum(key.endswith("input_shape") for key in expected)):
        shape = tuple(expected[f"{case}/input_shape"])
        image = golden_weights.noise(f"input/{case}", shape).transpose(0, 2, 3, 1)
        cases.append((case, image, forward.lower(variables, image).compile()))

    def measure() -> Figures:
        errors: dict[str, float] = {}
        for case, image, compiled in cases:
            for name, output in compiled(variables, image).items():
                nchw = np.transpose(output, (0, 3, 1, 2))
                errors |= golden_weights.map_errors(nchw, expected, f"{case}/{name}")
        worst = float(np.max(list(errors.values())))
        yield "goldens", {"errors": errors, "worst": worst, "ok": worst < GOLDEN_BOUND}

    return measure
