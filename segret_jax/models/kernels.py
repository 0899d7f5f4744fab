"""The choice of kernels: the fastest for the devices, or the plain formulas."""

import enum
import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

TRITON_CAPABILITY = 8.0  # of the oldest NVIDIA GPUs that run the Triton kernels: A100, RTX 30


class Kernels(enum.StrEnum):
    """The values of `model.kernels`; both compute the same function of the same parameters."""

    AUTO = "auto"  # the fastest form for the devices; scores are never held all at once
    REFERENCE = "reference"  # the formulas as written, on any backend; holds all scores


@dataclass(frozen=True)
class Platform:
    """Properties of the devices that will run a model."""

    is_cpu: bool = False
    capability: float | None = None  # the lowest compute capability of NVIDIA GPUs; None: no limit


ANY_PLATFORM = Platform()


def platform_of(devices: Iterable[Any]) -> Platform:
    """Return the platform of `devices`.

    Args:
        devices: The devices that will run a model, such as `jax.devices()`.

    Returns:
        Whether they are CPUs, and the lowest compute capability of NVIDIA GPUs.
    """
    devices = list(devices)
    found = [str(getattr(device, "compute_capability", "")) for device in devices]
    known = [float(text) for text in found if text.replace(".", "").isdecimal()]  # not AMD's gfx…
    return Platform(is_cpu=devices[0].platform == "cpu", capability=min(known, default=None))


@functools.cache
def announce_blocks(capability: float | None) -> None:
    """Print once if a GPU of this compute capability cannot run the Triton kernels."""
    if capability is not None and capability < TRITON_CAPABILITY and jax.process_index() == 0:
        text = f"compute capability {capability} is below {TRITON_CAPABILITY} of the Triton kernels"
        remedy = "bfloat16 is slow on this GPU, too: prefer model.dtype=float32"
        print(f"{text}: auto computes in blocks, without them; {remedy}", file=sys.stderr)


def is_full_precision(precision: str | None, dtype: Any) -> bool:
    """Return whether a kernel's products need full precision.

    Kernels have no "high", and for bfloat16, whose products are exact, no "highest" either.
    """
    names = ("high", "highest", "tensorfloat32", "float32")
    return precision in names and dtype == jnp.float32


def on_each_device(kernel: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Run a kernel, which XLA cannot split, on each device of a mesh in context with its images."""
    if not _split_axes():
        return kernel
    # A kernel does not declare over which axes its results vary.
    return jax.shard_map(kernel, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def by_image(axis: int) -> PartitionSpec:
    """Return how arrays are split whose images are along `axis`."""
    return PartitionSpec(*[None] * axis, _split_axes())


def _split_axes() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.axis_names if mesh.are_all_axes_auto and not mesh.empty else ()
