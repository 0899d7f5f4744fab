"""The memory of this machine: what there is, what a run took at its peak, and how to free it."""

import ctypes
import gc
import math
import os
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device: all of them, and those that no program uses. NaN where unknown."""

    total: float
    free: float


@dataclass(frozen=True, slots=True)
class Machine:
    """The devices of a run; the memory is each one's, but the devices of a CPU share it."""

    platform: str
    num_devices: int
    memory: Memory

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"


def machine_of(mesh: Mesh) -> Machine:
    """Return the machine that `mesh` is on, by its first device of this process."""
    device = mesh.local_devices[0]
    memory = host_memory() if device.platform == "cpu" else accelerator_memory(device.memory_stats)
    return Machine(device.platform, mesh.size, memory)


def accelerator_memory(memory_stats: Callable[[], dict[str, int] | None]) -> Memory:
    """Return the memory of an accelerator, from what JAX's device of it tells."""
    stats = memory_stats() or {}
    total = float(stats.get("bytes_limit", math.nan))
    return Memory(total, total - float(stats.get("bytes_in_use", 0)))


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """Return the machine's memory, or what a container or a batch job (cgroup) may take of it."""
    memory = _physical(proc)
    for limit, used in _cgroup_limits(proc, cgroups):
        if limit < memory.total:
            memory = Memory(limit, min(memory.free, max(limit - used, 0.0)))
    return memory


def _physical(proc: Path) -> Memory:
    try:
        lines = (proc / "meminfo").read_text(encoding="utf-8").splitlines()
        kib = {line.split(":")[0]: float(line.split()[1]) for line in lines if line.endswith("kB")}
        return Memory(1024 * kib["MemTotal"], 1024 * kib["MemAvailable"])
    except (OSError, KeyError, ValueError):
        pass  # not Linux
    try:
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return Memory(math.nan, math.nan)
    return Memory(total, math.nan)


def _cgroup_limits(proc: Path, cgroups: Path) -> list[tuple[float, float]]:
    """Return (limit, used) of the process's group and of each that it lies in, versions 1 and 2."""
    try:
        rows = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for row in rows:
        _, controllers, path = row.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = cgroups / "memory" if controllers else cgroups
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            with suppress(OSError, ValueError):  # "max": no limit; or the root, which has no file
                limit, used = (
                    float((folder / f"memory.{name}").read_text(encoding="ascii")) for name in names
                )
                found.append((limit, used - _reclaimable(folder)))
    return found


def _reclaimable(folder: Path) -> float:
    """Return the bytes of a group's file cache, which the system frees on demand."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key in ("inactive_file", "total_inactive_file"):
                return float(value)
    return 0.0


def device_memory() -> float:
    """Return the most bytes that one of this process's devices has had in use since its start.

    On CPU, whose memory is the process's own: the most that the whole process had resident. NaN
    for an accelerator that does not tell.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return float(peak_resident())
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return max((float(peak) for peak in peaks if peak is not None), default=math.nan)


def peak_resident() -> int:
    """Return the most bytes that this process had resident.

    On Linux, `getrusage` may give those of the process that started this one.
    """
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def trim_host_memory() -> None:
    """Give the system back what this process has freed, but its C library keeps.

    Compiling a training step on CPU, or loading it, leaves hundreds of megabytes of that.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # a system without glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
