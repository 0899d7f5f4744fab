"""The tables of benchmarks/results/aot/README.md, from the reports that `segret aot --out` wrote.

python -m benchmarks.aot_table benchmarks/results/aot/*.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from segret_jax.aot.report import expected_batch
from segret_jax.cli.summary import MODELS

TRAIN = (
    "model, crop", "slice (chips)", "memory per chip", "state / temporary / code, GB", "TFLOP",
    "moved", "all-reduces", "largest global batch, expected", "at best", "compiled in",
)  # fmt: skip
EVALUATION = (
    "model, input", "slice (chips of a host)", "memory per chip", "TFLOP", "moved", "at best",
)  # fmt: skip


def tables(files: list[Path]) -> tuple[str, str]:
    """Return the tables of training steps and of evaluations, small models first."""
    reports = [report for file in files for report in json.loads(file.read_text(encoding="utf-8"))]
    reports.sort(key=lambda r: (list(MODELS).index(r["model"]), r["topology"]))
    steps = [_step(r) for r in reports if r["program"].endswith("train step")]
    evaluations = [_evaluation(r) for r in reports if r["program"].endswith("evaluation")]
    return _table(TRAIN, steps), _table(EVALUATION, evaluations)


def _step(r: dict[str, Any]) -> list[str]:
    memory, reduced = r["memory"], r["collectives"].get("all-reduce", {"count": 0, "bytes": 0})
    return [
        f"{r['model']} {_shape(r)}",
        f"{r['topology']} ({r['chips']})",
        f"{memory['total'] / 1e9:.1f} of {r['limit'] / 1e9:.1f} GB",
        " / ".join(f"{memory[part] / 1e9:.2f}" for part in ("arguments", "temporary", "code")),
        f"{r['flops'] / 1e12:.2f}",
        "unknown" if r["bytes"] is None else f"{r['bytes'] / 1e9:.0f} GB",
        f"{reduced['count']} of {reduced['bytes'] / 1e6:.0f} MB",
        str(expected_batch(r)),
        _at_best(r),
        f"{r['compile_seconds'] / 60:.0f} min",
    ]


def _evaluation(r: dict[str, Any]) -> list[str]:
    return [
        f"{r['model']} {_shape(r)}",
        f"{r['topology']} ({r['chips']})",
        f"{r['memory']['total'] / 1e9:.2f} GB",
        f"{r['flops'] / 1e12:.2f}",
        f"{r['bytes'] / 1e9:.0f} GB",
        _at_best(r),
    ]


def _shape(r: dict[str, Any]) -> str:
    """Return the size alone of "global batch 16 of 640x640, float32"."""
    size = r["shape"].split(" of ")[1].split(",")[0].split(" ")[0]
    return size if r["dtype"] == "float32" else f"{size}, {r['dtype']}"


def _at_best(r: dict[str, Any]) -> str:
    slowest = max(r["bound"], key=lambda k: r["bound"][k])
    return f"{1e3 * r['bound'][slowest]:.0f} ms, {slowest}"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print("\n\n".join(tables([Path(name) for name in sys.argv[1:]])))
