"""Where the time of a program goes, by part of the model and by kernel.

`jax.profiler` writes an XSpace, which `jax.profiler.ProfileData` reads. Each operation in it names
its HLO instruction, whose metadata has the named scopes of the model that it was traced in.
"""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

# Each part and its named scopes; the innermost scope counts.
PARTS = {
    "stem": ("stem",),
    "depthwise": ("pos", "pos1", "pos2", "lepe"),
    "retention": ("retention",),
    "neighborhood attention": ("neighborhood",),
    "scan": ("scan",),
    "global attention": ("global",),
    "projections": ("mixer",),
    "FFN": ("ffn",),
    "norms": ("norm",),
    "downsample": ("downsample",),
    "decoder": ("decoder",),
    "loss": ("loss",),
    "optimizer": ("optimizer",),
}
BY_STAGE = ("retention", "neighborhood attention", "scan")  # parts that are split
OTHER = "other"
_PART_OF = {scope: part for part, scopes in PARTS.items() for scope in scopes}
_SCOPE = re.compile(rf"\b({'|'.join(_PART_OF)})\b")
_STAGE = re.compile(r"\bstage(\d)\b")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_OUTER = re.compile(r"\)? (?:while|conditional|call)\(")  # their time is that of what they run


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel, in one run of the program."""

    name: str
    part: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """The time of one run; operations that run at the same time all count."""

    parts: dict[str, float]  # seconds, longest first
    kernels: list[Kernel]  # longest first

    def shares(self) -> dict[str, float]:
        """Return each part's share of the time of all operations."""
        total = sum(self.parts.values())
        return {part: seconds / total for part, seconds in self.parts.items()}


def profile(run: Callable[[], Any], hlo: str, repeats: int = 3) -> Profile:
    """Trace `repeats` runs of a program; `hlo` is its `compiled.as_text()`."""
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        return read(ProfileData.from_file(str(file)), parts_of(hlo), repeats)


def read(data: ProfileData, parts: dict[str, str], repeats: int = 1) -> Profile:
    """Add up a trace of `repeats` runs; `parts` are those of the HLO instructions.

    On a GPU every event of its streams counts, and those of no known instruction are in `OTHER`.
    """
    of_part: defaultdict[str, float] = defaultdict(float)
    of_kernel: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for name, instruction, seconds in _device_events(data) or _host_events(data, parts):
        part = parts.get(instruction, OTHER)
        of_part[part] += seconds / repeats
        of_kernel[name, part].append(seconds)
    kernels = [
        Kernel(name, part, sum(times) / repeats, len(times) / repeats)
        for (name, part), times in of_kernel.items()
    ]
    return Profile(
        parts=dict(sorted(of_part.items(), key=lambda item: -item[1])),
        kernels=sorted(kernels, key=lambda kernel: -kernel.seconds),
    )


def _device_events(data: ProfileData) -> list[tuple[str, str, float]]:
    """Return (kernel, HLO instruction, seconds) of all streams of the devices."""
    return [
        (event.name, str(dict(event.stats).get("hlo_op", "")), event.duration_ns / 1e9)
        for plane in data.planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]


def _host_events(data: ProfileData, parts: dict[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yield the same of the operations that the CPU ran."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                instruction = dict(event.stats).get("hlo_op")
                if instruction in parts and not event.name.startswith("end: "):
                    yield event.name, str(instruction), event.duration_ns / 1e9


def parts_of(hlo: str) -> dict[str, str]:
    """Return the part of each instruction of a program's text."""
    found = {}
    for line in hlo.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction and not _OUTER.search(line):
            found[instruction[1]] = part_of((_OP_NAME.search(line) or ["", ""])[1])
    return found


def part_of(op_name: str) -> str:
    """Return the part that an operation's scopes name, such as "FFN" or "retention 3"."""
    scopes = _SCOPE.findall(op_name)
    if not scopes:
        return OTHER
    part = _PART_OF[scopes[-1]]
    stage = _STAGE.search(op_name)
    return f"{part} {stage[1]}" if part in BY_STAGE and stage else part
