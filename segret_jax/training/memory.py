"""The memory of a run: what it has needed at its worst, and what it can do without."""

import ctypes
import gc
import math
import resource
import sys
from contextlib import suppress

import jax


def device_memory() -> float:
    """Return the most bytes that one of this process's devices has had in use since its start.

    On CPU, whose memory is the process's own: the most that the whole process had resident. NaN
    for an accelerator that does not tell.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return max((float(peak) for peak in peaks if peak is not None), default=math.nan)


def give_back() -> None:
    """Give the system back what this process has freed, but its C library keeps.

    Compiling a training step on CPU, or loading it, leaves hundreds of megabytes of that.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # a system without glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
