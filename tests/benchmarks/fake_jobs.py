"""Jobs for tests of the processes, in the form of benchmarks/gpu/ours.py."""

import os
import signal
import time
from typing import Any

from segret_jax.errors import InputError


def start(spec: dict[str, Any]) -> dict[str, Any]:
    if "FAKE_NO_GPU" in os.environ:
        raise InputError("JAX sees no NVIDIA GPU here")
    return {"device": "fake"}


def value(x: int, *, seconds: float = 0.0) -> Any:
    def measure() -> Any:
        time.sleep(seconds)
        yield "value", {"x": x}
        yield "more", {"x": x + 1}

    return measure


def fails() -> Any:
    raise RuntimeError("out of memory\nand much more")


def half() -> Any:
    def measure() -> Any:
        yield "value", {"x": 1}
        raise RuntimeError("no trace")

    return measure


def dies() -> Any:
    def measure() -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        yield "value", {}

    return measure


JOBS = {"value": value, "fails": fails, "half": half, "dies": dies}
