"""Accelerators by name, with the peaks that bound a step, and topologies of them to compile for.

The peaks are the makers' published ones (Google Cloud's TPU pages, NVIDIA's data sheets).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segret_jax.errors import InputError, unknown_name
from segret_jax.models.kernels import announce_blocks


@dataclass(frozen=True)
class Chip:
    """What one chip can do at most; one chip is one JAX device."""

    flops: float  # per second, bfloat16 matrix products
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second, HBM
    links: float  # bytes per second that it can send to others: ICI, or NVLink
    axes: int = 2  # numbers in a slice's shape
    options: dict[str, Any] = field(default_factory=dict)  # for get_topology_desc


GIB = 2.0**30
TPUS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 3, {"chip_config_name": "megacore"}),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9),
}
GPUS = {
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, 1),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 1),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, 1),
    # Of float16: they have no bfloat16, and run no Triton kernels.
    "t4": Chip(65e12, 16e9, 320e9, 32e9, 1),
    "v100": Chip(125e12, 32e9, 900e9, 150e9, 1),
}


@dataclass(frozen=True)
class Topology:
    """Chips of one kind, as the compiler sees them."""

    name: str
    chip: Chip
    devices: Sequence[Any]
    capability: float | None = None  # compute capability; of NVIDIA GPUs

    @property
    def one_host(self) -> Sequence[Any]:
        """The devices of a single process: evaluation splits its images over those."""
        first = min(device.process_index for device in self.devices)
        return [device for device in self.devices if device.process_index == first]


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Read `v5e:4x4` or `h100:8` as a kind and a shape; InputError says what is wrong."""
    kind, _, shape = name.partition(":")
    chips = TPUS | GPUS
    if kind not in chips:
        raise unknown_name("kind of chip", kind, chips)
    axes, example = chips[kind].axes, {1: "8", 2: "4x4", 3: "2x2x4"}
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != axes:
        raise InputError(f"--topology is {name!r}; write it like {kind}:{example[axes]}")
    return kind, tuple(map(int, shape.split("x")))


def topology(name: str, gpu_target: Path | None = None) -> Topology:
    """Describe a slice of TPU chips, or the GPUs of one machine, to the compiler.

    `gpu_target` is a file with XLA's description of a GPU (a GpuTargetConfigProto as text).
    Raises InputError if the compiler for it is not installed, or does not know the shape.
    """
    from jax.experimental import topologies

    kind, shape = parse(name)
    if kind in TPUS:
        arguments = TPUS[kind].options | {"topology_name": name}
        platform, package = "tpu", "libtpu, by pip install 'jax[tpu]'"
    else:
        if gpu_target is None:
            raise InputError(
                f"--topology {name} needs --gpu-target FILE, XLA's description of that GPU; "
                "OpenXLA's repository has them, in xla/backends/gpu/target_config/specs"
            )
        arguments = {
            "topology_name": name,
            "topology": f"1x1x{shape[0]}",
            "target_config": gpu_target.read_text(encoding="utf-8"),
        }
        platform, package = "cuda", "JAX's CUDA plugin, by pip install 'jax[cuda13]'"
    chip = (TPUS | GPUS)[kind]
    try:
        found = topologies.get_topology_desc(platform=platform, **arguments)
    except Exception as error:  # of whatever kind the plugin raises
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"--topology {name}: {reason}. Is the compiler installed ({package}), and is there a "
            "slice of this shape?"
        ) from error
    capability = target_capability(arguments.get("target_config", ""))
    announce_blocks(capability)
    return Topology(name, chip, found.devices, capability)


def target_capability(target: str) -> float | None:
    """Read the compute capability from XLA's description of a GPU; None if it has none."""
    found = re.search(r"cuda_compute_capability\s*:?\s*\{(.*?)\}", target, re.DOTALL)
    numbers = dict(re.findall(r"\b(major|minor)\s*:\s*(\d+)", found[1])) if found else {}
    return float(f"{numbers['major']}.{numbers.get('minor', 0)}") if "major" in numbers else None
