"""Which program computes the model: kernels where the devices run them, or the plain formulas."""

import enum
import functools
import re
import sys
from collections.abc import Iterable
from typing import Any

import jax

TRITON_CAPABILITY = 8.0  # of the oldest NVIDIA GPUs that run the Triton kernels: A100, RTX 30


class Kernels(enum.StrEnum):
    """What `model.kernels` can be; both compute the same, with the same parameters."""

    AUTO = "auto"  # the fastest form for the devices; scores are never held all at once
    REFERENCE = "reference"  # the formulas as written, on any backend; holds all scores


def compute_capability(devices: Iterable[Any]) -> float | None:
    """Return the lowest compute capability of NVIDIA GPUs among `devices`, or None without any.

    Announces the fallback to blocks.
    """
    found = [str(getattr(device, "compute_capability", "")) for device in devices]
    known = [float(text) for text in found if re.fullmatch(r"\d+\.\d+", text)]  # not AMD's gfx…
    lowest = min(known, default=None)
    announce_blocks(lowest)
    return lowest


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
