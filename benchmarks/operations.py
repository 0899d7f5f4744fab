"""SegMAN's two operations over their floors: python -m benchmarks.operations --size 512x512.

Prints a line of JSON per operation, stage and pass: the milliseconds, the three floors, and the
ratio of the time to the largest of them. A floor is what the operation cannot do without, over what
this machine does per second, measured in the same run:

    bytes          of inputs and outputs, once; the scan: x, Δ of low rank, B, C and y
    mult_adds      of the products; with the backward pass three times as many, as each product
                   has two gradients
    exponentials   of every logit, or of every state's decay and softplus (which has two); again in
                   the backward pass, which keeps none

On a GPU the time is that of the kernels in a trace, if there is one: to call a small one takes
longer than to run it.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import trace
from benchmarks.machine import (
    machine,
    median_seconds,
    peak_bandwidth,
    peak_exponentials,
    peak_flops,
)
from segret_jax.cli import program
from segret_jax.cli.summary import parse_size
from segret_jax.models.kernels import platform_of
from segret_jax.models.neighborhood.attention import fast_neighborhood_attention
from segret_jax.models.neighborhood.formulas import neighborhood_attention
from segret_jax.models.segman.encoder import GLOBAL_STAGE
from segret_jax.models.segman.variants import VARIANTS
from segret_jax.models.selective_scan.formulas import ScanWeights, selective_scan_2d
from segret_jax.models.selective_scan.scan import fast_selective_scan_2d

DTYPES = ("float32", "bfloat16")
PASSES = {"forward": False, "forward and backward": True}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operation on random arrays.

    Attributes:
        name: What it is called.
        run: What the model runs.
        formulas: The same as written, which checks compare it with.
        arrays: The arguments of both, by name.
        out_grad: The gradient of the output, in its shape and dtype.
        mult_adds: Of a forward pass.
        exponentials: Of a forward pass.
        dtype: That of its products.
    """

    name: str
    run: Callable[..., jax.Array]
    formulas: Callable[..., jax.Array]
    arrays: dict[str, Any]
    out_grad: jax.Array
    mult_adds: float
    exponentials: float
    dtype: str

    @property
    def inputs(self) -> tuple[dict[str, Any], jax.Array]:
        """Return the arguments of its programs (`compiled`)."""
        return self.arrays, self.out_grad

    def exact(self) -> "Case":
        """Return the formulas on the same numbers in float32."""
        arrays, out_grad = jax.tree.map(lambda x: x.astype(jnp.float32), self.inputs)
        changes = {"run": self.formulas, "arrays": arrays, "out_grad": out_grad, "dtype": "float32"}
        return dataclasses.replace(self, **changes)

    def bytes(self, *, backward: bool) -> float:
        """Return the bytes of inputs and outputs, and of their gradients."""
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(self.inputs))
        return 2 * total if backward else total


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="tiny", choices=VARIANTS)
    parser.add_argument("--size", default="512x512", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(argv)
    limits = rates(args.dtype)
    print(json.dumps(machine() | {f"{key}_per_second": rate for key, rate in limits.items()}))
    for case in cases(args.variant, parse_size(args.size), args.batch, args.dtype):
        for name, backward in PASSES.items():
            run = compiled(case, backward=backward)
            found = measure(case, run, limits, backward=backward, repeats=args.repeats)
            print(json.dumps({"operation": case.name, "pass": name, **found}))


@functools.cache
def rates(dtype: str) -> dict[str, float]:
    """Measure what this machine does per second; `dtype` is that of products."""
    return {
        "bytes": peak_bandwidth(),
        "mult_adds": peak_flops(dtype, tf32=True) / 2,
        "exponentials": peak_exponentials(),
    }


def cases(variant: str, size: tuple[int, int], batch: int, dtype: str) -> Iterator[Case]:
    """Yield the operations of a variant's stages."""
    for stage in range(len(VARIANTS[variant].widths)):
        yield attention(variant, stage, size, batch, dtype)
        if stage != GLOBAL_STAGE:
            yield scan(variant, stage, size, batch, dtype)


def attention(variant: str, stage: int, size: tuple[int, int], batch: int, dtype: str) -> Case:
    """Return the neighborhood attention of a stage, from 0, for images of a size."""
    rng, shape = np.random.default_rng(stage), VARIANTS[variant]
    window, heads, width = shape.windows[stage], shape.heads[stage], shape.widths[stage]
    tokens = (batch, *_map_size(stage, size), heads, width // heads)
    q, k, v, out_grad = (jnp.asarray(rng.standard_normal(tokens), dtype) for _ in range(4))
    side = 2 * window - 1
    bias = jnp.asarray(rng.standard_normal((heads, side, side)), jnp.float32)
    logits = q.size // tokens[4] * window**2
    return Case(
        name=f"neighborhood attention, stage {stage + 1}",
        run=functools.partial(fast_neighborhood_attention, platform=platform_of(jax.devices())),
        formulas=neighborhood_attention,
        arrays={"q": q * tokens[4] ** -0.5, "k": k, "v": v, "bias": bias},
        out_grad=out_grad,
        mult_adds=2 * logits * tokens[4],
        exponentials=logits,
        dtype=dtype,
    )


def scan(variant: str, stage: int, size: tuple[int, int], batch: int, dtype: str) -> Case:
    """Return the selective scan of a stage, from 0, for images of a size."""
    rng, channels = np.random.default_rng(stage), VARIANTS[variant].widths[stage]
    rank, tokens = -(-channels // 16), (batch, *_map_size(stage, size))

    def noise(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    x = noise(*tokens, channels).astype(dtype)
    weights = ScanWeights(
        dt_kernel=noise(4, rank, channels) * rank**-0.5,
        dt_bias=noise(4, channels) - 4,  # a state that remembers many steps
        a_log=0.3 * noise(4, channels),
        skip=noise(4, channels),
    )
    return Case(
        name=f"selective scan, stage {stage + 1}",
        run=functools.partial(fast_selective_scan_2d, platform=platform_of(jax.devices())),
        formulas=selective_scan_2d,
        arrays={"x": x, "projections": noise(*tokens, 4, rank + 2), "weights": weights},
        out_grad=noise(*tokens, channels),
        # Δ from its low rank; decay and update of the state, output, skip.
        mult_adds=4 * x.size * (rank + 5),
        exponentials=12 * x.size,
        dtype="float32",
    )


def _map_size(stage: int, size: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // 2 ** (stage + 2)) for side in size)
    return height, width


def compiled(case: Case, *, backward: bool, precision: str = "default") -> jax.stages.Compiled:
    """Compile a pass: from the case's `inputs` to {"output": …}, and a gradient per argument."""

    def run(arrays: dict[str, Any], out_grad: jax.Array) -> dict[str, Any]:
        with jax.default_matmul_precision(precision):
            if not backward:
                return {"output": case.run(**arrays)}
            out, pull = jax.vjp(lambda arrays: case.run(**arrays), arrays)
            return {"output": out} | pull(out_grad)[0]

    return jax.jit(run).lower(*case.inputs).compile()


def measure(
    case: Case,
    run: jax.stages.Compiled,
    limits: dict[str, float],
    *,
    backward: bool,
    repeats: int,
) -> dict[str, Any]:
    """Return the time of a compiled pass and its floors (`rates` are the limits), in ms."""
    needed = {
        "bytes": case.bytes(backward=backward),
        "mult_adds": case.mult_adds * (3 if backward else 1),
        "exponentials": case.exponentials * (2 if backward else 1),
    }
    floors = {key: 1e3 * needed[key] / rate for key, rate in limits.items()}
    time = 1e3 * median_seconds(lambda: run(*case.inputs), repeats)
    traced = trace.profile(lambda: run(*case.inputs), "")  # nothing on CPU
    kernels = 1e3 * sum(traced.parts.values())
    return {
        "ms": round(time, 3),
        **({"kernels_ms": round(kernels, 3)} if kernels else {}),
        **{f"{key}_floor_ms": round(floor, 3) for key, floor in floors.items()},
        "over_largest_floor": round((kernels or time) / max(floors.values()), 2),
    }


if __name__ == "__main__":
    program.run(main)
