"""What a figure must be read with: the machine, its versions, and its measured limits."""

import datetime
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from segret_jax.run.memory import peak_resident

PRODUCT = 8192  # rows of the square matrices on an accelerator; an eighth on CPU
COPIED = 2**28  # bytes
EXPONENTIALS, TERMS = 2**26, 16  # numbers, a 64th on CPU, and the exponentials of each


def machine() -> dict[str, Any]:
    """Return date, device and versions."""
    device = jax.devices()[0]
    return date_and_cores() | {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }


def date_and_cores() -> dict[str, Any]:
    """Return what is known without JAX."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def peak_memory() -> int:
    """Return the peak bytes of the accelerator, or of this process on CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return peak_resident()


def peak_flops(dtype: DTypeLike, *, tf32: bool = False, size: int = 0) -> float:
    """Measure the operations per second of a large matrix product, two for each multiply-add.

    `size` is the side of the matrices; 0: one that fills the device. `tf32` is for float32 on an
    NVIDIA GPU; elsewhere it changes nothing.
    """
    n = size or (PRODUCT // 8 if jax.default_backend() == "cpu" else PRODUCT)
    is_tf32 = tf32 and jax.default_backend() == "gpu"
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32 if is_tf32 else None
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)  # ones take less power, and time
    product = jax.jit(lambda a: lax.dot(a, a, precision=precision))
    return 2 * n**3 / median_seconds(lambda: product(a), repeats=10)


def peak_bandwidth() -> float:
    """Measure the bytes per second that a copy of a large array reads and writes."""
    x = jnp.ones(COPIED // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / median_seconds(lambda: add(x), repeats=10)


def peak_exponentials() -> float:
    """Measure the exponentials per second of a sum over a large array.

    Each number gives several: with one alone, a GPU would wait for its memory.
    """
    n = EXPONENTIALS // 64 if jax.default_backend() == "cpu" else EXPONENTIALS
    x = jnp.linspace(-5.0, 0.0, n)
    total = jax.jit(lambda x: jnp.sum(sum(jnp.exp(x * (1 + i / TERMS)) for i in range(TERMS))))
    return TERMS * n / median_seconds(lambda: total(x), repeats=10)


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Time `run`, after once to warm up, until its result is there."""
    return float(np.median(seconds(run, repeats)))


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of each of the repeats."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times
