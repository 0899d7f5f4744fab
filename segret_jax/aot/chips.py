"""TPU chips by name, with the peaks that bound a step, and slices of them to compile for.

The peaks are those published by Google Cloud (TPU pages).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segret_jax.errors import InputError, unknown_name

GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """The peaks of a chip, which is one JAX device."""

    flops: float  # per second, bfloat16 matrix products
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second, HBM
    links: float  # bytes per second that it can send to others (ICI)
    axes: int = 2  # numbers in a slice's shape
    options: Mapping[str, Any] = field(default_factory=dict)  # for get_topology_desc


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 3, {"chip_config_name": "megacore"}),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9),
}


@dataclass(frozen=True)
class Topology:
    """A slice of chips, as the compiler sees it."""

    name: str
    chip: Chip
    devices: Sequence[Any]

    @property
    def one_host(self) -> Sequence[Any]:
        """The devices of a single process: evaluation splits its images over those."""
        first = min(device.process_index for device in self.devices)
        return [device for device in self.devices if device.process_index == first]


def parse(name: str) -> Chip:
    """Return the chip of a slice such as `v5e:4x4`; raise InputError for another form."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise unknown_name("kind of chip", kind, CHIPS)
    axes, number = CHIPS[kind].axes, r"[1-9]\d*"
    if not re.fullmatch("x".join([number] * axes), shape):
        example = "4x4" if axes == 2 else "2x2x4"
        raise InputError(f"--topology is {name!r}; write it like {kind}:{example}")
    return CHIPS[kind]


def topology(name: str) -> Topology:
    """Return the slice of TPU chips that `name` describes.

    Raises:
        InputError: The compiler is not installed, or does not know the shape.
    """
    from jax.experimental import topologies

    chip = parse(name)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **chip.options)
    except Exception as error:  # of whatever kind the plugin raises
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"--topology {name}: {reason}. Is the compiler installed (libtpu, by pip install "
            "'jax[tpu]'), and is there a slice of this shape?"
        ) from error
    return Topology(name, chip, found.devices)
