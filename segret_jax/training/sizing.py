"""Choose settings that fit the data and the machine, for configs that leave them open.

A config with `train.minutes` > 0 may leave each setting marked `sized` at 0. They are chosen once,
when the run starts, and saved with the config in its folder. A resumed run reads them from there,
on whatever machine.
"""

import copy
import math
import statistics
import timeit
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from segret_jax import config as configs
from segret_jax.config import Config
from segret_jax.data.folders import plural
from segret_jax.data.sources import Source
from segret_jax.errors import InputError
from segret_jax.models.factory import abstract
from segret_jax.models.families import get_family
from segret_jax.models.flops import operations
from segret_jax.parallel import processes
from segret_jax.run.memory import Machine
from segret_jax.training.forecast import forecast

SAMPLE = 64  # images whose headers are read
SIDE, CPU_SIDE = 512, 256  # the shorter side of an image in training, at most
CROP, CPU_CROP = 1.0, 0.75  # of that side
BATCH, CPU_BATCH = 16, 8
LEARNING_RATE = {"scratch": (1e-3, 8), "weights": (1e-4, 16)}  # at this batch size
EFFICIENCY, CPU_EFFICIENCY = 0.05, 0.5  # of a large matrix product's speed, measured
INPUT_RATE = 60.0  # images per second that one process prepares, measured
MEMORY_SHARE = 0.7  # of what is free
TRAINING_SHARE = 0.85  # of the time; compilation, evaluation and checkpoints take the rest
MAX_EVALUATIONS = 10
MAX_PASSES = 300  # over the training images
MIN_STEPS = 100


@dataclass(frozen=True, slots=True)
class Data:
    """The properties of the data that sizing uses; `size` is the median (height, width)."""

    num_training: int
    num_validation: int
    num_classes: int
    size: tuple[int, int]
    is_mixed: bool = False  # portrait and landscape images


def resolve(
    config: Config, workdir: Path, machine: Machine, training: Source, validation: Source,
    num_classes: int,
) -> tuple[Config, tuple[str, ...]]:  # fmt: skip
    """Choose the settings that `config` leaves open, or read those of the run in `workdir`.

    Args:
        config: The settings of the run.
        workdir: The run's folder; it may not exist yet.
        machine: The devices and their memory.
        training: The training samples.
        validation: The validation samples.
        num_classes: The number of classes.

    Returns:
        The complete config, and notes for the user.

    Raises:
        InputError: There are several processes, whose machines may differ.
    """
    if not configs.left_open(config):
        return config, ()
    if (saved := workdir / "config.json").exists():
        sized, values = copy.deepcopy(config), configs.flatten(configs.load(saved))
        for key in configs.left_open(config):
            configs.set_value(sized, key, values[key])
        return configs.validate(sized), ()
    if processes.is_multiprocess():
        listed = ", ".join(configs.left_open(config))
        raise InputError(f"several processes do not choose {listed}: give --config.KEY=VALUE")
    data = examine(training, len(validation), num_classes)
    speed = measure_speed(config.model.dtype, machine)
    num_params = abstract(config.model, num_classes).num_params
    chosen = choose(config, data, machine, speed=speed, num_params=num_params)
    sized = configs.validate(chosen)
    return sized, (describe(sized, data, images_per_second(sized, data, machine, speed)),)


def examine(training: Source, num_validation: int, num_classes: int) -> Data:
    """Read the sizes of some images, spread over all of them, from their headers."""
    count = len(training)
    sizes = [training.size(i) for i in range(0, count, math.ceil(count / SAMPLE))]
    portrait = sum(h > w for h, w in sizes) / len(sizes)
    short = round(statistics.median(min(size) for size in sizes))
    long = round(statistics.median(max(size) for size in sizes))
    size = (long, short) if portrait > 0.5 else (short, long)
    return Data(count, num_validation, num_classes, size, is_mixed=0.05 < portrait < 0.95)


def measure_speed(dtype: str, machine: Machine) -> float:
    """Return the FLOP/s of all devices in matrix products, the best of five times one's."""
    size = 1024 if machine.is_cpu else 4096
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    seconds = timeit.repeat(lambda: jax.block_until_ready(product(x)), number=1, repeat=6)
    devices = 1 if machine.is_cpu else machine.num_devices
    return devices * 2.0 * size**3 / min(seconds)


def choose(
    config: Config, data: Data, machine: Machine, *, speed: float, num_params: int
) -> Config:
    """Return `config` with a value for each setting that it leaves open.

    Crop and sizes follow from the images, then the batch from the memory, the steps from the time,
    and the learning rate from the batch and from whether there are weights to start from.
    """
    config = copy.deepcopy(config)
    train, optim = config.train, config.optim
    _choose_sizes(config, data, machine)
    train.batch_size = train.batch_size or _batch_that_fits(config, data, machine, num_params)
    if not train.steps:
        rate = images_per_second(config, data, machine, speed)
        steps = int(60 * train.minutes * TRAINING_SHARE * rate / train.batch_size)
        most = MAX_PASSES * data.num_training // train.batch_size
        train.steps = max(min(steps, most), MIN_STEPS)
    if not train.eval_every:
        # Evaluating an image costs a third of training on it: a tenth of the time in all.
        times = int(0.3 * train.steps * train.batch_size / max(data.num_validation, 1))
        train.eval_every = math.ceil(train.steps / min(max(times, 1), MAX_EVALUATIONS))
    if not optim.learning_rate:
        rate, batch = LEARNING_RATE["weights" if config.init_from else "scratch"]
        optim.learning_rate = float(f"{rate * math.sqrt(train.batch_size / batch):.2g}")
    optim.warmup_steps = optim.warmup_steps or math.ceil(train.steps / 20)
    return config


def _choose_sizes(config: Config, data: Data, machine: Machine) -> None:
    """Scale images to a shorter side that the machine can train on; crop most of that."""
    short, long = min(data.size), max(data.size)
    family = get_family(config.model.family)
    scale = max(min(short, CPU_SIDE if machine.is_cpu else SIDE), family.admissible(1)) / short
    if 0 in config.data.resize_base:
        config.data.resize_base = round(scale * long), round(scale * short)
    if 0 in config.eval.resize_target:
        config.eval.resize_target = config.data.resize_base
    if 0 in config.data.crop:
        long, short = config.data.resize_base
        short = int(short * (CPU_CROP if machine.is_cpu else CROP))
        long = short if data.is_mixed else min(long, short * 4 // 3)
        short, long = (family.admissible(max(32, side // 32 * 32)) for side in (short, long))
        config.data.crop = (long, short) if data.size[0] > data.size[1] else (short, long)


def _batch_that_fits(config: Config, data: Data, machine: Machine, num_params: int) -> int:
    """Halve the usual batch until it fits in most of the memory, and is not more than the data."""
    unit = machine.num_devices * config.train.accumulate
    memory = machine.memory
    room = MEMORY_SHARE * (memory.total if math.isnan(memory.free) else memory.free)
    trial = copy.deepcopy(config)

    def fits(batch: int) -> bool:
        trial.train.batch_size = batch
        needed = forecast(trial, machine, num_params, data.num_classes).running
        return batch <= data.num_training and not needed > room  # room may be unknown: NaN

    least = math.ceil(get_family(config.model.family).min_batch / machine.num_devices)
    batch = max((CPU_BATCH if machine.is_cpu else BATCH) // unit, least)
    while batch > least and not fits(batch * unit):
        batch = max(batch // 2, least)
    return batch * unit


def images_per_second(config: Config, data: Data, machine: Machine, speed: float) -> float:
    """Estimate the speed of training: of the devices, or of preparing the images."""
    # The backward pass takes twice the operations of the forward pass.
    work = 3 * operations(config.model, data.num_classes, config.data.crop)
    compute = (CPU_EFFICIENCY if machine.is_cpu else EFFICIENCY) * speed / work
    return min(compute, INPUT_RATE * max(config.data.workers, 1))


def describe(config: Config, data: Data, rate: float) -> str:
    """Describe in one line what was chosen, and from what."""
    train, num_images = config.train, config.train.steps * config.train.batch_size
    seconds = round(num_images / rate / TRAINING_SHARE)
    time = plural(seconds, "second") if seconds < 60 else plural(round(seconds / 60), "minute")
    start = "from the weights of init_from" if config.init_from else "from scratch"
    fewest = ", the fewest" if train.steps == MIN_STEPS else ""
    return (
        f"sized for {data.num_training} images of about {_x(data.size)} and {train.minutes:g} "
        f"minutes: crops of {_x(config.data.crop)}, batches of {train.batch_size}, {train.steps} "
        f"steps{fewest} ({num_images / data.num_training:.1f} passes over the data, roughly "
        f"{time} on this machine), learning rate "
        f"{config.optim.learning_rate:g} {start}; --config.KEY=VALUE sets any of these"
    )


def _x(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
