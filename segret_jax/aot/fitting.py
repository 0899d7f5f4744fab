"""Receipts of a config's programs."""

import sys
from typing import Any

from segret_jax.aot import programs
from segret_jax.aot.chips import Topology
from segret_jax.aot.receipt import compile_for
from segret_jax.config import Config
from segret_jax.data.pipeline import class_table
from segret_jax.evaluation.plan import Size
from segret_jax.models.config import model_name
from segret_jax.models.flops import operations

Receipt = dict[str, Any]


def train_report(config: Config, topology: Topology) -> Receipt:
    """Compile the training step of `config` for `topology`."""
    num_classes = class_table(config.data).num_classes
    batch, crop = config.train.batch_size, config.data.crop
    flops = 3 * batch * operations(config.model, num_classes, crop)  # backward: twice the forward
    _announce(f"the train step for a global batch of {batch}")
    lowered = programs.train_step(config, num_classes, topology)
    receipt = compile_for(lowered, topology, num_chips=len(topology.devices), model_flops=flops)
    receipt = _described(config, "train step", f"global batch {batch} of {_x(crop)}") | receipt
    return receipt | ({"expected_batch": expected_batch(receipt)} if "bound" in receipt else {})


def evaluation_report(config: Config, topology: Topology) -> Receipt:
    """Compile the network of evaluation at its largest input for one host of `topology`."""
    num_classes = class_table(config.data).num_classes
    size, batch = programs.largest_input(config), config.eval.batch_size
    num_chips = len(topology.one_host)
    flops = batch * num_chips * operations(config.model, num_classes, size)
    _announce(f"the evaluation network for {_x(size)}")
    lowered = programs.evaluation(config, num_classes, topology)
    receipt = compile_for(lowered, topology, num_chips=num_chips, model_flops=flops)
    return _described(config, "evaluation", f"{batch} image of {_x(size)} per chip") | receipt


def expected_batch(receipt: Receipt) -> int:
    """Return the largest batch that should fit, if memory grows with the images on a chip."""
    unit = receipt["chips"] * receipt["accumulate"]
    per_part = receipt["memory"]["temporary"] / (receipt["batch_size"] / unit)
    room = receipt["limit"] - receipt["memory"]["total"] + receipt["memory"]["temporary"]
    return int(room // per_part) * unit


def _announce(program: str) -> None:
    print(f"compiling {program}, which takes minutes", file=sys.stderr, flush=True)


def _described(config: Config, program: str, shape: str) -> Receipt:
    model, spread = config.model, config.mesh
    remat = f", remat {','.join(map(str, model.remat))}" if model.remat else ""
    parts = config.train.accumulate
    if program == "train step":
        shape += f" in {parts} parts" if parts > 1 else ""
        remat += f", mesh.fsdp {spread.fsdp}" if spread.fsdp != 1 else ""
    return {
        "model": model_name(model),
        "dataset": config.data.dataset,
        "dtype": model.dtype,
        "remat": list(model.remat),
        "fsdp": spread.fsdp,
        "accumulate": parts,
        "batch_size": config.train.batch_size,
        "program": f"{model_name(model)}: {program}",
        "shape": f"{shape}, {model.dtype}{remat}",
    }


def _x(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
