"""The memory of a machine: its own, or the limit of a container."""

import math
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from segret_jax.run.memory import Memory, accelerator_memory, host_memory

GIB = 2.0**30


def write(files: dict[Path, str]) -> None:
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")


@pytest.mark.parametrize(
    ("row", "files", "total", "free"),
    [
        ("0::/", {}, 16, 8),
        # The limit is that of a group further up; its file cache counts as free.
        (
            "0::/a/b",
            {"a/b/memory.max": "max", "a/b/memory.current": "1",
             "a/memory.max": str(4 << 30), "a/memory.current": str(3 << 30),
             "a/memory.stat": f"anon 1\ninactive_file {1 << 30}\n"},
            4, 2,
        ),
        # In a container the group is the root of what it sees.
        ("0::/", {"memory.max": str(6 << 30), "memory.current": "0"}, 6, 6),
        (
            "4:cpu,memory:/job",
            {"memory/job/memory.limit_in_bytes": str(2 << 30),
             "memory/job/memory.usage_in_bytes": str(1 << 30)},
            2, 1,
        ),
        # Version 1 has a huge number for no limit.
        (
            "4:memory:/job",
            {"memory/job/memory.limit_in_bytes": str(2**63 - 4096),
             "memory/job/memory.usage_in_bytes": str(1 << 30)},
            16, 8,
        ),
    ],
)  # fmt: skip
def test_host_memory_is_cut_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, files: dict[str, str],
    total: float, free: float,
) -> None:  # fmt: skip
    machine = SimpleNamespace(total=16 << 30, available=8 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    own_groups, cgroups = tmp_path / "proc/self/cgroup", tmp_path / "cgroup"
    write({own_groups: f"9:pids:/\n{row}\n"})
    write({cgroups / name: content for name, content in files.items()})
    assert host_memory(own_groups, cgroups) == Memory(total * GIB, free * GIB)


def test_an_accelerator_reports_its_limit_or_nothing() -> None:
    stats = {"bytes_limit": 8, "bytes_in_use": 3}
    assert accelerator_memory(lambda: stats) == Memory(8.0, 5.0)
    assert math.isnan(accelerator_memory(lambda: None).total)
