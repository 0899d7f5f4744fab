"""Receipts of a config's programs, and the largest batch that fits."""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from segret_jax.aot import programs
from segret_jax.aot.chips import Topology
from segret_jax.aot.receipt import compile_for
from segret_jax.config import Config
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.evaluation.plan import Size
from segret_jax.summary import operations
from segret_jax.training.state import model_name

Receipt = dict[str, Any]


def train_receipt(config: Config, topology: Topology) -> Receipt:
    """Compile the training step of `config` for `topology`."""
    num_classes = class_table(config.data).num_classes
    batch, crop = config.train.batch_size, config.data.crop
    flops = 3 * batch * _flops(config, num_classes, crop)  # backward: twice the forward
    with _announced(f"the train step for a global batch of {batch}"):
        lowered = programs.train_step(config, num_classes, topology)
        receipt = compile_for(lowered, topology, num_chips=len(topology.devices), model_flops=flops)
    receipt = _described(config, "train step", f"global batch {batch} of {_x(crop)}") | receipt
    return receipt | ({"expected_batch": expected_batch(receipt)} if "bound" in receipt else {})


def evaluation_receipt(config: Config, topology: Topology) -> Receipt:
    """Compile the network of evaluation at its largest input for one host of `topology`."""
    num_classes = class_table(config.data).num_classes
    size, batch = programs.largest_input(config), config.eval.batch_size
    num_chips = len(topology.one_host)
    flops = batch * num_chips * _flops(config, num_classes, size)
    with _announced(f"the evaluation network for {_x(size)}"):
        lowered = programs.evaluation(config, num_classes, topology)
        receipt = compile_for(lowered, topology, num_chips=num_chips, model_flops=flops)
    return _described(config, "evaluation", f"{batch} image of {_x(size)} per chip") | receipt


def largest_batch(
    config: Config, topology: Topology, first: Receipt, keep: Callable[[Receipt], Receipt]
) -> str:
    """Find the largest global batch whose training step fits, from the `first` receipt on.

    Memory grows by about the same with each image on a chip. So each guess is made from the
    smallest and the largest batch that fit, and compiled; `keep` is given each receipt. Returns the
    answer in words.
    """
    if "bound" not in first:
        return "the batch of the config does not fit; give a smaller train.batch_size to start from"
    unit = first["chips"] * config.train.accumulate
    receipts = {config.train.batch_size // unit: first}  # by images of a chip in a part
    guess = _next_guess(receipts)
    while guess not in receipts and guess > 0:
        larger = copy.deepcopy(config)
        larger.train.batch_size = guess * unit
        receipts[guess] = keep(train_receipt(larger, topology))
        guess = _next_guess(receipts)
    fitting = [parts for parts, receipt in receipts.items() if receipt["fits"]]
    if not fitting:
        return f"not even a global batch of {unit} fits"
    largest = max(fitting) * unit
    return f"largest global batch that fits: {largest}, {largest // first['chips']} per chip"


def _next_guess(receipts: dict[int, Receipt]) -> int:
    """Return where memory would reach its limit, or what fits if there is nothing between."""
    fitting = sorted(parts for parts, receipt in receipts.items() if receipt["fits"])
    low = max(fitting, default=0)
    high = min((parts for parts in receipts if parts > low), default=0)
    if high and high - low <= 1:
        return low
    if low == 0:
        return high // 2
    used = {parts: receipt["memory"]["total"] for parts, receipt in receipts.items()}
    if high:
        slope = (used[high] - used[low]) / (high - low)
    elif len(fitting) > 1:
        slope = (used[low] - used[fitting[0]]) / (low - fitting[0])
    else:
        slope = receipts[low]["memory"]["temporary"] / low
    expected = max(low + 1, low + int((receipts[low]["limit"] - used[low]) // slope))
    return min(expected, high - 1) if high else expected


def expected_batch(receipt: Receipt) -> int:
    """Return the largest batch that should fit, if memory grows with the images on a chip."""
    unit = receipt["chips"] * receipt["accumulate"]
    per_part = receipt["memory"]["temporary"] / (receipt["batch_size"] / unit)
    room = receipt["limit"] - receipt["memory"]["total"] + receipt["memory"]["temporary"]
    return int(room // per_part) * unit


@contextmanager
def _announced(program: str) -> Iterator[None]:
    """Say on standard error what is compiled and how long it took; it takes minutes."""
    begun = time.monotonic()
    print(f"compiling {program}, which takes minutes", file=sys.stderr, flush=True)
    yield
    print(f"compiled {program} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


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


def _flops(config: Config, num_classes: int, size: Size) -> float:
    """Return the operations of a forward pass over one image."""
    if config.model.task != "segmentation":
        raise InputError("a classifier is not trained or evaluated here")
    return operations(config.model, num_classes, size)


def _x(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
