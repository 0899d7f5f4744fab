"""The memory of this machine: its size, the peak of a run, and how to free it."""

import ctypes
import gc
import math
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jax
import psutil
from jax.sharding import Mesh

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


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
    """Return the machine of `mesh`, described by its first device of this process."""
    device = mesh.local_devices[0]
    memory = host_memory() if device.platform == "cpu" else accelerator_memory(device.memory_stats)
    return Machine(device.platform, mesh.size, memory)


def accelerator_memory(memory_stats: Callable[[], dict[str, int] | None]) -> Memory:
    """Return the memory of an accelerator from its JAX device's `memory_stats`."""
    stats = memory_stats() or {}
    total = float(stats.get("bytes_limit", math.nan))
    return Memory(total, total - float(stats.get("bytes_in_use", 0)))


def host_memory(own_groups: Path = OWN_GROUPS, cgroups: Path = CGROUPS) -> Memory:
    """Return the machine's memory, or the limit of a container or a batch job (cgroup)."""
    machine = psutil.virtual_memory()
    memory = Memory(float(machine.total), float(machine.available))
    for limit, used in _cgroup_limits(own_groups, cgroups):
        if limit < memory.total:
            memory = Memory(limit, min(memory.free, max(limit - used, 0.0)))
    return memory


def _cgroup_limits(own_groups: Path, cgroups: Path) -> list[tuple[float, float]]:
    """Return (limit, used) of the process's group and of its parents, for cgroup v1 and v2."""
    try:
        rows = own_groups.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
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
                limit, used = (float((folder / f"memory.{name}").read_text()) for name in names)
                found.append((limit, used - _reclaimable(folder)))
    return found


def _reclaimable(folder: Path) -> float:
    """Return the bytes of a group's file cache, which the system frees on demand."""
    with suppress(OSError):
        stat = (folder / "memory.stat").read_text(encoding="ascii")
        if found := re.search(r"^(total_)?inactive_file (\d+)$", stat, re.MULTILINE):
            return float(found[2])
    return 0.0


def device_memory() -> float:
    """Return the peak bytes in use on one of this process's devices since its start.

    On CPU, whose memory is the process's own: the peak resident size of the process. NaN for an
    accelerator that does not report it.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return float(peak_resident())
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return max((float(peak) for peak in peaks if peak is not None), default=math.nan)


def peak_resident() -> int:
    """Return the peak resident bytes of this process."""
    with suppress(OSError):  # on Linux, `getrusage` may report those of the parent process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def trim_host_memory() -> None:
    """Return freed memory that the C library keeps to the system.

    Compiling a training step on CPU, or loading it, leaves hundreds of megabytes of that.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # a system without glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
