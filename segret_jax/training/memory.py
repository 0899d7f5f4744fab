"""How much memory a run has needed at its worst."""

import math
import resource
import sys

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
