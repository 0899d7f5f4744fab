"""What one compilation says of a program, as plain values and in words."""

import datetime
import re
import time
from typing import Any

import jax

from segret_jax.aot.chips import Chip, Topology
from segret_jax.aot.hlo import collectives
from segret_jax.errors import InputError

# XLA's refusal, "Used 80.36G of 15.75G hbm": what it would take, and what a chip has for programs.
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNIT = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}


def compile_for(
    lowered: Any, topology: Topology, *, num_chips: int, model_flops: float
) -> dict[str, Any]:
    """Compile a program of `num_chips`; return bytes, seconds and operations of one of them.

    `model_flops` are those of the formula for all chips together (`models.flops`): XLA's own
    count misses what runs again in a loop. A program that does not fit has `fits` false and only
    the memory that it would take. Raises InputError if the compiler fails for another reason.
    """
    receipt: dict[str, Any] = {
        "topology": topology.name,
        "chips": num_chips,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _TOO_LARGE.search(str(error))
        if not needed:
            raise InputError(f"the compiler failed: {str(error).splitlines()[0][:300]}") from error
        used, limit = (float(needed[i]) * _UNIT[needed[i + 1]] for i in (1, 3))
        seconds = round(time.perf_counter() - start, 1)
        return receipt | {
            "fits": False,
            "compile_seconds": seconds,
            "memory": {"total": used},
            "limit": limit,
        }
    receipt["compile_seconds"] = round(time.perf_counter() - start, 1)
    stats = compiled.memory_analysis()
    cost = compiled.cost_analysis()
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    memory["total"] = sum(memory.values())
    traffic = {k: vars(v) for k, v in collectives(compiled.as_text()).items()}
    receipt |= {
        "fits": memory["total"] <= topology.chip.memory,
        "limit": topology.chip.memory,
        "memory": memory,
        "flops": model_flops / num_chips,
        "flops_by_xla": cost["flops"],
        "bytes": cost["bytes accessed"],
        "collectives": traffic,
    }
    return receipt | {"bound": bound(receipt, topology.chip)}


def bound(receipt: dict[str, Any], chip: Chip) -> dict[str, float]:
    """Return the seconds that each of a chip's peaks allows at best; a step takes at least the max.

    An all-reduce sends each byte twice (it is a reduce-scatter and an all-gather).
    """
    sent = sum(
        t["bytes"] * (2 if kind == "all-reduce" else 1)
        for kind, t in receipt["collectives"].items()
    )
    return {
        "compute": receipt["flops"] / chip.flops,
        "links": sent / chip.links if receipt["chips"] > 1 else 0.0,
        "memory": receipt["bytes"] / chip.bandwidth,
    }


def to_text(receipt: dict[str, Any]) -> str:
    """Return the receipt in lines for a person."""
    memory, lines = receipt["memory"], []
    room = f"{memory['total'] / 1e9:.2f} GB of {receipt['limit'] / 1e9:.2f} GB per chip"
    verdict = "fits" if receipt["fits"] else "DOES NOT FIT"
    lines.append(
        f"{receipt['program']} on {receipt['topology']} ({receipt['chips']} chips): "
        f"{verdict}, {room}"
    )
    lines.append(f"  {receipt['shape']}; compiled in {receipt['compile_seconds']:.0f} s")
    if "bound" not in receipt:
        return "\n".join(lines)
    parts = ", ".join(f"{k} {memory[k] / 1e9:.2f}" for k in memory if k != "total")
    lines.append(f"  memory, GB: {parts}")
    lines.append(
        f"  per chip: {receipt['flops'] / 1e12:.3f} TFLOP by formula "
        f"({receipt['flops_by_xla'] / 1e12:.3f} by XLA, loops counted once), "
        f"{receipt['bytes'] / 1e9:.2f} GB moved"
    )
    sent = ", ".join(
        f"{t['count']} {kind} of {t['bytes'] / 1e6:.1f} MB in all"
        for kind, t in receipt["collectives"].items()
    )
    lines.append(f"  collectives: {sent or 'none'}")
    times = receipt["bound"]
    slowest = max(times, key=lambda k: times[k])
    lines.append(
        f"  no faster than {1e3 * times[slowest]:.1f} ms, by {slowest} "
        f"({', '.join(f'{k} {1e3 * t:.1f}' for k, t in times.items())})"
    )
    if batch := receipt.get("expected_batch"):
        lines.append(f"  a global batch of about {batch} should fit")
    return "\n".join(lines)
