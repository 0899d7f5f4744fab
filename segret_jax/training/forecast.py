"""Forecast the memory of training by formula, before anything is compiled.

The constants are fitted to XLA's `memory_analysis` of compiled steps, as
tests/training/test_forecast.py checks. Each model family has constants for its activations.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.models.families import get_family
from segret_jax.run.memory import Machine

STATE_COPIES = 4  # parameters, gradients, two moments
PROCESS = 0.6e9  # on CPU: the interpreter, the libraries, the compiled programs
COMPILING = 2.0e9  # on CPU, before the first step
BATCHES_AHEAD = 6  # that the input pipeline prepares
ERROR = 0.15  # of the forecast, at most; 0.1 was found


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes of one device (on CPU, of the process); `compiling` comes before the others."""

    state: float
    activations: float
    rest: float
    compiling: float

    @property
    def total(self) -> float:
        return max(self.running, self.compiling)

    @property
    def running(self) -> float:
        return self.state + self.activations + self.rest


def forecast(config: Config, machine: Machine, num_params: int, num_classes: int) -> Forecast:
    """Forecast the memory of one device for training with `config` on `machine`.

    The devices of a CPU share its memory, so all of them are counted.

    Args:
        config: The settings of the run.
        machine: The devices and their memory.
        num_params: The number of the model's parameters.
        num_classes: The number of classes.

    Returns:
        The forecast; its activations are NaN for a family that has no formula.
    """
    model, train, on_cpu = config.model, config.train, machine.is_cpu
    costs = get_family(model.family).load().costs
    per_pixel = costs.activation_bytes(model, num_classes, on_cpu=on_cpu) if costs else math.nan
    pixels = math.prod(config.data.crop) * train.batch_size / (1 if on_cpu else machine.num_devices)
    copies = STATE_COPIES + (train.ema_decay > 0) + (train.accumulate > 1)
    bytes_per_pixel = 3 * 4 + 1  # image and label of a batch
    return Forecast(
        state=4 * num_params * copies / (1 if on_cpu else max(config.mesh.fsdp, 1)),
        activations=pixels / train.accumulate * per_pixel,
        rest=PROCESS + BATCHES_AHEAD * bytes_per_pixel * pixels if on_cpu else 0.0,
        compiling=COMPILING if on_cpu else 0.0,
    )


def check_memory(config: Config, machine: Machine, num_params: int, num_classes: int) -> str:
    """Return one line on the memory that training needs and that is free.

    Raises:
        InputError: The total memory is less than the forecast minus its error.
    """

    def need(config: Config) -> float:
        return forecast(config, machine, num_params, num_classes).total

    memory, needed = machine.memory, need(config)
    if math.isnan(needed):
        return f"the memory that {config.model.family} needs in training is not known"
    message = f"training needs about {_gb(needed)} of memory" + " per device" * (not machine.is_cpu)
    if math.isnan(memory.total):
        return message
    if needed * (1 - ERROR) > memory.total:
        choices, most = smaller_configs(config, machine.num_devices), 0.9 * memory.total
        fitting = (f"give {flags} or change" for changed, flags in choices if need(changed) < most)
        remedy, count = next(fitting, "change"), get_family(config.model.family).num_remat_stages
        has_remat = count > 0 and not machine.is_cpu  # where it saves nothing
        stages = f"model.remat={','.join(map(str, range(1, count + 1)))}, " * has_remat
        raise InputError(
            f"{message}, but there are {_gb(memory.total)}: {remedy} train.batch_size, "
            f"train.accumulate, data.crop, {stages}or model.dtype=bfloat16 by --config.KEY=VALUE"
        )
    free = memory.total if math.isnan(memory.free) else memory.free
    if needed > free:
        return f"WARNING: {message}, but only {_gb(free)} of {_gb(memory.total)} are free"
    return f"{message}; {_gb(free)} are free"


def smaller_configs(config: Config, num_devices: int) -> Iterator[tuple[Config, str]]:
    """Yield configs that need less and less memory, with the flags that change `config` to them."""
    batch, parts = config.train.batch_size, config.train.accumulate
    choices = [
        (batch, n)
        for n in range(parts + 1, batch // (4 * num_devices) + 1)
        if batch % (n * num_devices) == 0
    ]
    small = batch // parts
    while small > num_devices:
        small = max(small // 2 // num_devices, 1) * num_devices
        choices.append((small, 1))
    least = get_family(config.model.family).min_batch
    for batch_size, accumulate in choices:
        if batch_size // accumulate < least:
            continue
        train = replace(config.train, batch_size=batch_size, accumulate=accumulate)
        flags = [f"--config.train.batch_size={batch_size}"] * (batch_size != batch)
        flags += [f"--config.train.accumulate={accumulate}"] * (accumulate != parts)
        yield replace(config, train=train), " ".join(flags)


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
