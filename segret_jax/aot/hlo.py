"""What a compiled program sends between chips, read from its HLO text."""

import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}  # others say it: s32, u8, …

# Of asynchronous pairs the second, `-done`, is counted: its type is the result alone.
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-done)?\(")
# The devices that take part, as [groups,size]<=[devices], or as lists.
_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) (?:\(.*)?->.*\{$|^(?:ENTRY )?%?([\w.-]+) \{$")
_LOOP = re.compile(r"\bwhile\(.*?body=%?([\w.-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|called_computations)=\{?%?([\w.-]+)")


@dataclass
class Traffic:
    """Calls of one kind of collective in one run of a program, and the bytes of the arrays sent."""

    count: int = 0
    bytes: int = 0


def collectives(text: str) -> dict[str, Traffic]:
    """Return {kind: Traffic} for one device; what a loop does counts as often as it runs.

    `text` is `compiled.as_text()`. A loop whose number of runs XLA does not tell counts once.
    """
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)  # of each computation
    inside: dict[str, list[tuple[str, int]]] = defaultdict(list)  # computations it runs, how often
    name = entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[1] or header[2]
            entry = name if line.startswith("ENTRY") else entry
        elif loop := _LOOP.search(line):
            trips = _TRIPS.search(line)
            inside[name].append((loop[1], int(trips[1]) if trips else 1))
        else:
            inside[name] += [(called, 1) for called in _CALLED.findall(line)]
            if collective := _COLLECTIVE.search(line):
                found[name].append((collective[2], _size(collective[1]) * _parts(collective, line)))

    totals: dict[str, Traffic] = defaultdict(Traffic)

    def add(computation: str, times: int) -> None:
        for kind, size in found[computation]:
            totals[kind].count += times
            totals[kind].bytes += times * size
        for called, trips in inside[computation]:
            add(called, times * trips)

    add(entry, 1)
    return dict(totals)


def _parts(collective: re.Match[str], line: str) -> int:
    """Return how often a result goes into what is sent: that of a reduce-scatter is one part."""
    if collective[2] != "reduce-scatter":
        return 1
    counted, listed = _GROUPS.search(line), _GROUP.search(line)
    return int(counted[1]) if counted else len(listed[1].split(",")) if listed else 1


def _size(result: str) -> int:
    """Return the bytes of all arrays in the text of a type."""
    total = 0
    for dtype, shape in _ARRAY.findall(re.sub(r"\{.*?\}", "", result)):
        elements = 1
        for side in filter(None, shape.split(",")):
            elements *= int(side)
        total += elements * (BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 8)) // 8
    return total
