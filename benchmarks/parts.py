"""Where the time of a program goes: a trace, whose operations are each in a part of the model."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

# A part and the named scopes that it is made of; of an operation in several, the innermost counts.
PARTS = {
    "stem": ("stem",),
    "depthwise": ("pos", "lepe"),
    "retention": ("retention",),
    "FFN": ("ffn",),
    "downsample": ("downsample",),
    "decoder": ("decoder",),
    "loss": ("loss",),
    "optimizer": ("optimizer",),
}
_PART_OF = {scope: part for part, scopes in PARTS.items() for scope in scopes}
_SCOPE = re.compile(rf"\b({'|'.join(_PART_OF)})\b")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_OUTER = re.compile(r"\)? (?:while|conditional|call)\(")  # whose time is that of what they run


def shares(run: Callable[[], Any], hlo: str, repeats: int = 3) -> dict[str, float]:
    """Return the share of each part in the time of all operations, the largest first.

    `hlo` is `compiled.as_text()`. Operations that run side by side all count.
    """
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = ProfileData.from_file(str(file))
    parts = parts_of(hlo)
    spent: defaultdict[str, float] = defaultdict(float)
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name in parts and not event.name.startswith("end: "):
                    spent[parts[name]] += event.duration_ns
    total = sum(spent.values())
    return {part: spent[part] / total for part in sorted(spent, key=lambda p: -spent[p])}


def parts_of(hlo: str) -> dict[str, str]:
    """Return the part of each instruction of a program's text."""
    found = {}
    for line in hlo.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction and not _OUTER.search(line):
            scopes = _SCOPE.findall((_OP_NAME.search(line) or ["", ""])[1])
            found[instruction[1]] = _PART_OF[scopes[-1]] if scopes else "other"
    return found
