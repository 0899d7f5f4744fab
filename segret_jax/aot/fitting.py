"""Reports about the programs of a config: memory, operations and a bound on their time."""

import sys
from typing import Any

from segret_jax.aot import programs
from segret_jax.aot.chips import Topology
from segret_jax.aot.report import compile_for
from segret_jax.config import Config
from segret_jax.data.pipeline import class_table
from segret_jax.evaluation.plan import Size
from segret_jax.models.config import model_name
from segret_jax.models.flops import operations

TRAIN_STEP, EVALUATION = "train step", "evaluation"
Report = dict[str, Any]


def train_report(config: Config, topology: Topology) -> Report:
    """Compile the training step of `config` for all chips of `topology`."""
    batch, parts, crop = config.train.batch_size, config.train.accumulate, config.data.crop
    shape = f"global batch {batch} of {crop[0]}x{crop[1]}"
    shape += f" in {parts} parts" if parts > 1 else ""
    shape += f", mesh.fsdp {config.mesh.fsdp}" if config.mesh.fsdp != 1 else ""
    passes = 3 * batch  # the backward pass takes twice the operations of the forward pass
    report = _report(config, topology, TRAIN_STEP, shape, passes, crop)
    return report | ({"expected_batch": expected_batch(report)} if "bound" in report else {})


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
        **compile_for(lowered, topology, num_chips=chips, model_flops=flops),
    }
