"""Which program computes the model: kernels where the devices run them, or the plain formulas."""

import enum
import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax

TRITON_CAPABILITY = 8.0  # of the oldest NVIDIA GPUs that run the Triton kernels: A100, RTX 30


class Kernels(enum.StrEnum):
    """What `model.kernels` can be; both compute the same, with the same parameters."""

    AUTO = "auto"  # the fastest form for the devices; scores are never held all at once
    REFERENCE = "reference"  # the formulas as written, on any backend; holds all scores


@dataclass(frozen=True)
class Platform:
    """The devices that are to run a model, as far as its program depends on them."""

    is_cpu: bool = False
    capability: float | None = None  # the lowest compute capability of NVIDIA GPUs; None: no limit


ANY_PLATFORM = Platform()


def platform_of(devices: Iterable[Any]) -> Platform:
    """Return the platform of `devices`; announces the fallback to blocks."""
    devices = list(devices)
    found = [str(getattr(device, "compute_capability", "")) for device in devices]
    known = [float(text) for text in found if re.fullmatch(r"\d+\.\d+", text)]  # not AMD's gfx…
    lowest = min(known, default=None)
    announce_blocks(lowest)
    return Platform(is_cpu=devices[0].platform == "cpu", capability=lowest)


@functools.cache
def announce_blocks(capability: float | None) -> None:
    """Say in one line, once, if a GPU of this compute capability cannot run the Triton kernels."""
    if capability is not None and capability < TRITON_CAPABILITY and jax.process_index() == 0:
        print(
            f"compute capability {capability}: the Triton kernels need {TRITON_CAPABILITY}, so "
            "model.kernels=auto computes retention in blocks; bfloat16 is slow on this GPU, too: "
            "prefer model.dtype=float32",
            file=sys.stderr,
        )
