"""The collective operations of a compiled program, read from its HLO text."""

import math
import re
from collections import defaultdict
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}  # others say it: s32, u8, …

# Of asynchronous pairs the second, `-done`, is counted: its type is the result alone.
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-done)?\(")
# The devices that take part, as [groups,size]<=[devices], or as lists.
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) (?:\(.*)?->.*\{$|^(?:ENTRY )?%?([\w.-]+) \{$")
_LOOP = re.compile(r"\bwhile\(.*?body=%?([\w.-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|called_computations)=\{?%?([\w.-]+)")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Count the collectives of one device in one run of a program.

    Args:
        text: `compiled.as_text()`.

    Returns:
        {kind: {"count": calls, "bytes": bytes of the arrays sent}}. Calls in a loop count as often
        as it runs, or once if XLA does not know the number of its runs.
    """
    found: Any = defaultdict(list)  # the collectives of each computation
    inner: Any = defaultdict(list)  # the computations that each runs, and how often
    name = entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[1] or header[2]
            entry = name if line.startswith("ENTRY") else entry
        elif loop := _LOOP.search(line):
            trips = _TRIPS.search(line)
            inner[name].append((loop[1], int(trips[1]) if trips else 1))
        else:
            inner[name] += [(called, 1) for called in _CALLED.findall(line)]
            if collective := _COLLECTIVE.search(line):
                found[name].append((collective[2], _bytes_sent(collective, line)))
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})

    def add(computation: str, times: int) -> None:
        for kind, size in found[computation]:
            totals[kind]["count"] += times
            totals[kind]["bytes"] += times * size
        for called, trips in inner[computation]:
            add(called, times * trips)

    add(entry, 1)
    return dict(totals)


def _bytes_sent(collective: re.Match[str], line: str) -> int:
    """Return the bytes of all arrays in the type of a result; that of a reduce-scatter is one part.

    It is multiplied by the number of the parts.
    """
    groups, total = _GROUPS.search(line), 0
    for dtype, shape in _ARRAY.findall(re.sub(r"\{.*?\}", "", collective[1])):
        elements = math.prod(map(int, filter(None, shape.split(","))))
        total += elements * (BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 8)) // 8
    if collective[2] == "reduce-scatter" and groups:
        total *= int(groups[1] or groups[2].count(",") + 1)
    return total
