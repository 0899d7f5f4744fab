"""Reports about the programs of a config: memory, operations, and a bound on their time."""

import re
import sys
import time
from typing import Any

import jax

from segret_jax.aot import programs
from segret_jax.aot.chips import Chip, Topology
from segret_jax.aot.hlo import collectives
from segret_jax.config import Config
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.evaluation.plan import Size
from segret_jax.models.config import model_name
from segret_jax.models.families import get_family
from segret_jax.models.flops import operations

Report = dict[str, Any]

TRAIN_STEP, EVALUATION = "train step", "evaluation"
# The message of XLA, "Used 80.36G of 15.75G hbm": the memory needed, and that of a chip.
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNIT = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}


def train_report(config: Config, topology: Topology) -> Report:
    """Compile the training step of `config` for all chips of `topology`."""
    batch, parts, crop = config.train.batch_size, config.train.accumulate, config.data.crop
    shape = f"global batch {batch} of {crop[0]}x{crop[1]}"
    shape += f" in {parts} parts" if parts > 1 else ""
    shape += f", mesh.fsdp {config.mesh.fsdp}" if config.mesh.fsdp != 1 else ""
    # The backward pass takes twice the operations of the forward pass.
    report = _report(config, topology, TRAIN_STEP, shape, 3 * batch, crop)
    if "bound" not in report:
        return report
    least = parts * get_family(config.model.family).min_batch
    fitting = expected_batch(report)
    return report | {"expected_batch": fitting if fitting >= least else 0}


def evaluation_report(config: Config, topology: Topology) -> Report:
    """Compile the network of evaluation at its largest input for one host of `topology`."""
    size, batch = programs.largest_input(config), config.eval.batch_size
    shape = f"{batch} image of {size[0]}x{size[1]} per chip"
    return _report(config, topology, EVALUATION, shape, batch * len(topology.one_host), size)


def expected_batch(report: Report) -> int:
    """Return the largest batch that should fit, if memory grows with the images on a chip."""
    unit = report["chips"] * report["accumulate"]
    per_image = report["memory"]["temporary"] / (report["batch_size"] / unit)
    room = report["limit"] - report["memory"]["total"] + report["memory"]["temporary"]
    return int(room // per_image) * unit


def _report(
    config: Config, topology: Topology, program: str, shape: str, passes: int, size: Size
) -> Report:
    """Compile a program that makes `passes` forward passes of an image of `size`."""
    print(f"compiling the {program} ({shape}), which takes minutes", file=sys.stderr, flush=True)
    model, num_classes = config.model, class_table(config.data).num_classes
    remat = f", remat {','.join(map(str, model.remat))}" if model.remat else ""
    flops = passes * operations(model, num_classes, size)
    is_train = program == TRAIN_STEP
    lower = programs.train_step if is_train else programs.evaluation
    chips = len(topology.devices if is_train else topology.one_host)
    lowered = lower(config, num_classes, topology)
    return {
        "model": model_name(model),
        "dtype": model.dtype,
        "accumulate": config.train.accumulate,
        "batch_size": config.train.batch_size,
        "program": f"{model_name(model)}: {program}",
        "shape": f"{shape}, {model.dtype}{remat}",
        "flops_by": "formula" if get_family(model.family).load().costs else "XLA",
        **compile_for(lowered, topology, num_chips=chips, model_flops=flops),
    }


def compile_for(lowered: Any, topology: Topology, *, num_chips: int, model_flops: float) -> Report:
    """Compile a program for `num_chips` chips.

    Args:
        lowered: The lowered program, a `jax.stages.Lowered`.
        topology: The slice that the program is for.
        num_chips: The number of its chips that run the program.
        model_flops: The operations of all chips (`models.flops`), by formula if the family has
            one: XLA's count of the program misses repetitions in loops.

    Returns:
        Bytes, seconds and operations per chip. Of a program that does not fit, `fits` is false and
        of the measurements only the memory needed is there.

    Raises:
        InputError: The compiler fails for another reason than memory.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _TOO_LARGE.search(str(error))
        if not needed:
            raise InputError(f"the compiler failed: {str(error).splitlines()[0][:300]}") from error
        used, limit = (float(needed[i]) * _UNIT[needed[i + 1]] for i in (1, 3))
        found = {"fits": False, "memory": {"total": used}, "limit": limit}
    else:
        found = _measure(compiled, topology.chip, num_chips, model_flops)
    seconds = round(time.perf_counter() - start, 1)
    about = {"topology": topology.name, "chips": num_chips, "jax": jax.__version__}
    return about | {"compile_seconds": seconds} | found


def _measure(compiled: Any, chip: Chip, num_chips: int, model_flops: float) -> Report:
    stats, cost = compiled.memory_analysis(), compiled.cost_analysis()
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    memory["total"] = sum(memory.values())
    found = {
        "fits": memory["total"] <= chip.memory,
        "limit": chip.memory,
        "memory": memory,
        "flops": model_flops / num_chips,
        "flops_by_xla": cost["flops"],
        "bytes": cost["bytes accessed"],
        "collectives": collectives(compiled.as_text()),
    }
    return found | {"bound": bound(found | {"chips": num_chips}, chip)}


def bound(report: Report, chip: Chip) -> dict[str, float]:
    """Return the least seconds by each of a chip's peaks; a step takes at least their maximum.

    An all-reduce sends each byte twice: it is a reduce-scatter and an all-gather.
    """
    traffic = report["collectives"]
    sent = sum(t["bytes"] * (2 if kind == "all-reduce" else 1) for kind, t in traffic.items())
    return {
        "compute": report["flops"] / chip.flops,
        "links": sent / chip.links if report["chips"] > 1 else 0.0,
        "memory": report["bytes"] / chip.bandwidth,
    }


def to_text(report: Report) -> str:
    """Return the report as lines of text."""
    memory = {part: f"{size / 1e9:.2f}" for part, size in report["memory"].items()}
    total, limit = memory.pop("total"), f"{report['limit'] / 1e9:.2f}"
    lines = [
        f"{report['program']} on {report['topology']} ({report['chips']} chips): "
        f"{'fits' if report['fits'] else 'DOES NOT FIT'}, {total} GB of {limit} GB per chip",
        f"  {report['shape']}; compiled in {report['compile_seconds']:.0f} s",
    ]
    if "bound" not in report:
        return "\n".join(lines)
    kinds = report["collectives"].items()
    sent = (f"{t['count']} {kind} of {t['bytes'] / 1e6:.1f} MB in all" for kind, t in kinds)
    times = {part: 1e3 * seconds for part, seconds in report["bound"].items()}
    slowest = max(times, key=lambda part: times[part])
    by_xla = f" ({report['flops_by_xla'] / 1e12:.3f} by XLA, loops counted once)"
    lines += [
        f"  memory, GB: {', '.join(f'{part} {size}' for part, size in memory.items())}",
        f"  per chip: {report['flops'] / 1e12:.3f} TFLOP by {report['flops_by']}"
        f"{by_xla if report['flops_by'] == 'formula' else ', loops counted once'}, "
        f"{report['bytes'] / 1e9:.2f} GB moved",
        f"  collectives: {', '.join(sent) or 'none'}",
        f"  no faster than {times[slowest]:.1f} ms, by {slowest} "
        f"({', '.join(f'{part} {t:.1f}' for part, t in times.items())})",
    ]
    if batch := report.get("expected_batch"):
        lines.append(f"  a global batch of about {batch} should fit")
    return "\n".join(lines)
