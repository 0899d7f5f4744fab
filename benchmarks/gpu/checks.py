"""Is it right on this device: retention against its formulas, models against the goldens."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.gpu.worker import Figures, Measure
from benchmarks.machine import median_seconds
from segret_jax.config import ModelConfig
from segret_jax.convert.importing import import_tensors
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.retention.decay import LogDecay, head_log_decay
from segret_jax.models.retention.formulas import decomposed_retention, whole_retention
from tests import golden_weights

# Largest ‖x − exact‖ / ‖exact‖ of an output or a gradient; bfloat16 has 8 bits.
BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}
GOLDEN_BOUND = 1e-4  # of the RMS (tests/goldens/README.md)
TRITON = "__gpu$xla.gpu.triton"  # the target of the kernels' calls in a compiled program
FORMS = {"decomposed": decomposed_retention, "whole": whole_retention}


def kernels(
    form: str, size: tuple[int, int], *, batch: int, heads: int, width: int, dtype: str,
    repeats: int,
) -> Measure:  # fmt: skip
    """Compare what the model runs with the formulas: output, gradients of q, k and v, and time."""
    rng = np.random.default_rng(np.random.SeedSequence([*size, heads, width]))
    drawn = rng.standard_normal((4, batch, *size, heads, width)).astype(np.float32)
    args = [jnp.asarray(x, dtype) for x in drawn]
    log_decay = head_log_decay(heads, initial=2.0, span=4.0)
    precision = "highest" if dtype == "float32" else "default"
    blocked = functools.partial(blocked_retention, decomposed=form == "decomposed")
    ours = _with_gradients(blocked, log_decay, precision).lower(*args).compile()
    plain = _with_gradients(FORMS[form], log_decay, precision).lower(*args).compile()
    exact_args = [x.astype(jnp.float32) for x in args]
    exact = _with_gradients(FORMS[form], log_decay, "highest").lower(*exact_args).compile()

    def measure() -> Figures:
        outputs, expected = ours(*args), exact(*exact_args)
        errors = [_error(x, y) for x, y in zip(outputs, expected, strict=True)]
        again = ours(*args)
        same = all(bool((x == y).all()) for x, y in zip(outputs, again, strict=True))
        del outputs, expected, again
        yield (
            "kernels",
            {
                "errors": dict(zip(("output", "q", "k", "v"), errors, strict=True)),
                "ok": max(errors) < BOUNDS[dtype] and same,
                "same_bits_again": same,
                "triton_calls": str(ours.as_text()).count(TRITON),
                "ms": 1e3 * median_seconds(lambda: ours(*args), repeats),
                "formulas_ms": 1e3 * median_seconds(lambda: plain(*args), repeats),
            },
        )

    return measure


def _with_gradients(form: Callable, log_decay: LogDecay, precision: str) -> jax.stages.Wrapped:
    """Return (q, k, v, gradient of the output) -> (output, gradients of q, k and v)."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array) -> tuple[jax.Array, ...]:
        with jax.default_matmul_precision(precision):
            scaled = k * k.shape[-1] ** -0.5
            out, pull = jax.vjp(lambda *args: form(*args, log_decay), q, scaled, v)
            return (out, *pull(grad))

    return jax.jit(run)


def _error(x: jax.Array, exact: jax.Array) -> float:
    difference = jnp.linalg.norm((x.astype(jnp.float32) - exact).ravel())
    return float(difference / jnp.linalg.norm(exact.ravel()))


def goldens(variant: str) -> Measure:
    """Compare every stage and the logits with what the released PyTorch code computes."""
    name = f"segret_{variant}"
    expected = golden_weights.load(name)
    model = ModelConfig(matmul_precision="highest")
    imported = import_tensors(golden_weights.tensors(name), model)
    graph, variables = imported.bundle.graph, jax.device_put(imported.bundle.variables)

    def forward(variables: Any, image: jax.Array) -> list[jax.Array]:
        network = nnx.merge(graph, *variables)
        maps = network.encoder(image)
        return [*maps, network.decoder(maps)]

    cases = []
    for case in range(sum(key.endswith("input_shape") for key in expected)):
        shape = tuple(expected[f"{case}/input_shape"])
        image = golden_weights.noise(f"input/{case}", shape).transpose(0, 2, 3, 1)
        with jax.default_matmul_precision("highest"):
            compiled = jax.jit(forward).lower(variables, image).compile()
        cases.append((case, image, compiled))

    def measure() -> Figures:
        errors = {}
        for case, image, compiled in cases:
            outputs = compiled(variables, image)
            for key, output in zip(("c1", "c2", "c3", "c4", "logits"), outputs, strict=True):
                nchw = np.transpose(output, (0, 3, 1, 2))
                error = golden_weights.relative_error(nchw, expected[f"{case}/{key}"])
                errors[f"{case}/{key}"] = error
        worst = max(errors.values())
        yield "goldens", {"errors": errors, "worst": worst, "ok": worst < GOLDEN_BOUND}

    return measure
