"""SegMAN's two operations over their floors: python -m benchmarks.operations --size 512x512.

Prints a line of JSON per operation, stage and direction: the seconds, the three floors, and the
ratio of the time to the largest of them. A floor is what the operation cannot do without, over what
this machine does per second, measured in the same run:

    bytes          of inputs and outputs, once; the scan: x, Δ of low rank, B, C and y
    mult_adds      of the products; with the backward pass three times as many, as each product
                   has two gradients
    exponentials   of every logit, or of every state's decay and softplus (which has two); again in
                   the backward pass, which keeps none
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine, median_seconds, peak_bandwidth, peak_flops
from segret_jax.cli import program
from segret_jax.cli.summary import parse_size
from segret_jax.models.neighborhood.attention import fast_neighborhood_attention
from segret_jax.models.segman.encoder import GLOBAL_STAGE
from segret_jax.models.segman.variants import VARIANTS
from segret_jax.models.selective_scan.formulas import ScanWeights
from segret_jax.models.selective_scan.scan import fast_selective_scan_2d

DTYPES = ("float32", "bfloat16")
EXPONENTIALS = 2**24  # of an array whose exponentials are timed


@dataclass(frozen=True)
class Case:
    """An operation on random arrays, and what a forward pass needs."""

    name: str
    run: Callable[..., jax.Array]
    arrays: tuple[Any, ...]
    mult_adds: float
    exponentials: float

    def bytes(self, *, backward: bool) -> float:
        """Return the bytes of inputs and outputs, and of their gradients."""
        inputs = sum(leaf.nbytes for leaf in jax.tree.leaves(self.arrays))
        shape = jax.eval_shape(self.run, *self.arrays)
        output = shape.size * shape.dtype.itemsize
        return 2 * inputs + 2 * output if backward else inputs + output


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="tiny", choices=VARIANTS)
    parser.add_argument("--size", default="512x512", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(argv)
    values = jnp.linspace(-5.0, 0.0, EXPONENTIALS)
    exponential = jax.jit(lambda x: jnp.exp(x).sum())
    rates = {
        "bytes": peak_bandwidth(),
        "mult_adds": peak_flops(args.dtype, tf32=True) / 2,
        "exponentials": EXPONENTIALS / median_seconds(lambda: exponential(values), args.repeats),
    }
    print(json.dumps(machine() | {f"{key}_per_second": rate for key, rate in rates.items()}))
    for case in cases(args.variant, parse_size(args.size), args.batch, args.dtype):
        for backward in (False, True):
            print(json.dumps(measure(case, rates, backward=backward, repeats=args.repeats)))


def cases(variant: str, size: tuple[int, int], batch: int, dtype: str) -> list[Case]:
    """Return the operations of a variant's stages."""
    found = []
    shape = VARIANTS[variant]
    for stage, (width, heads, window) in enumerate(
        zip(shape.widths, shape.heads, shape.windows, strict=True)
    ):
        h, w = (-(-side // 2 ** (stage + 2)) for side in size)
        found.append(_attention(stage, (batch, h, w, heads, width // heads), window, dtype))
        if stage != GLOBAL_STAGE:
            found.append(_scan(stage, (batch, h, w, width), dtype))
    return found


def _attention(stage: int, shape: tuple[int, ...], window: int, dtype: str) -> Case:
    rng = np.random.default_rng(stage)
    q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(3))
    side = 2 * window - 1
    bias = jnp.asarray(rng.standard_normal((shape[3], side, side)), jnp.float32)
    logits = q.size // shape[4] * window**2
    name = f"neighborhood attention, stage {stage + 1}"
    arrays = (q * shape[4] ** -0.5, k, v, bias)
    return Case(name, fast_neighborhood_attention, arrays, 2 * logits * shape[4], logits)


def _scan(stage: int, shape: tuple[int, ...], dtype: str) -> Case:
    rng, channels = np.random.default_rng(stage), shape[-1]
    rank = -(-channels // 16)
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    projections = jnp.asarray(rng.standard_normal((*shape[:3], 4, rank + 2)), jnp.float32)
    weights = ScanWeights(
        dt_kernel=jnp.full((4, rank, channels), rank**-0.5),
        dt_bias=jnp.full((4, channels), -4.0),
        a_log=jnp.zeros((4, channels)),
        skip=jnp.ones((4, channels)),
    )
    # Δ from its low rank; decay and update of the state, output, skip.
    mult_adds = 4 * x.size * (rank + 5)
    arrays = (x, projections, weights)
    return Case(
        f"selective scan, stage {stage + 1}", fast_selective_scan_2d, arrays, mult_adds, 12 * x.size
    )


def measure(case: Case, rates: dict[str, float], *, backward: bool, repeats: int) -> dict[str, Any]:
    """Return the time of an operation and its floors, in milliseconds."""

    def total(arrays: Any) -> jax.Array:
        return case.run(*arrays).astype(jnp.float32).sum()

    step = jax.jit(jax.value_and_grad(total) if backward else lambda arrays: case.run(*arrays))
    needed = {
        "bytes": case.bytes(backward=backward),
        "mult_adds": case.mult_adds * (3 if backward else 1),
        "exponentials": case.exponentials * (2 if backward else 1),
    }
    floors = {key: 1e3 * needed[key] / rates[key] for key in needed}
    time = 1e3 * median_seconds(lambda: step(case.arrays), repeats)
    return {
        "operation": case.name,
        "pass": "forward and backward" if backward else "forward",
        "ms": round(time, 3),
        **{f"{key}_floor_ms": round(floor, 3) for key, floor in floors.items()},
        "over_largest_floor": round(time / max(floors.values()), 2),
    }


if __name__ == "__main__":
    program.run(main)
