"""The results as Markdown, for benchmarks/results."""

from typing import Any

Line = dict[str, Any]
FRAMEWORKS = {"ours": "segret_jax", "original": "original, eager", "torch.compile": "original, "
              "`torch.compile`"}  # fmt: skip
ORDER = ("tiny", "small", "base", "large")


def table(lines: list[Line]) -> str:
    """Return tables of the newest figure of each name; dry runs only if there is nothing else."""
    real = [line for line in lines if not line.get("dry_run")]
    figures = {line["figure"]: line for line in real or lines if "error" not in line}
    sections = [
        _machine(list(figures.values()) or lines), _peaks(figures), _train(figures),
        _parts(figures), _kernels(figures), _inference(figures), _checks(figures),
        _retention(figures), _failed(real or lines, figures),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section)


def _machine(lines: list[Line]) -> str:
    def all_of(key: str) -> str:
        return ", ".join(sorted({str(line[key]) for line in lines if key in line})) or "none"

    dry = "Dry run: tiny sizes, no measurement. " if any(x.get("dry_run") for x in lines) else ""
    return (
        f"# {all_of('device')}, {all_of('date')}\n\n{dry}"
        f"Commit {all_of('commit')}; {all_of('cores')} cores, Python {all_of('python')}, "
        f"jax {all_of('jax')} ({all_of('platform')}), PyTorch {all_of('torch')}. bfloat16: ours in "
        "`model.dtype`, the original's by autocast."
    )


def _peaks(figures: dict[str, Line]) -> str:
    if "peaks" not in figures:
        return ""
    peak = figures["peaks"]
    tf32 = f"{peak['tf32_tflops']:.0f} TFLOP/s" if "tf32_tflops" in peak else "none"
    return (
        f"Measured peaks: bfloat16 product {peak['bf16_tflops']:.0f} TFLOP/s, TF32 product "
        f"{tf32}, copy {peak['copy_gb_per_second']:.0f} GB/s (read and written)."
    )


def _train(figures: dict[str, Line]) -> str:
    rows = []
    for variant in _variants(figures, "train"):
        ours = figures.get(f"train/{variant}/ours", {})
        for key, name in FRAMEWORKS.items():
            if line := figures.get(f"train/{variant}/{key}"):
                rows.append([variant, name, *_speed(line, ours, figures), _times(line, ours)])
    head = ("train step", "", "ms (least, most)", "images/s", "share of the bfloat16 peak",
            "device memory, GB", "compilation, s", "its time over ours")  # fmt: skip
    return _markdown("## Train step", head, rows, note=(
        "Shares are of an analytic count of the published model's operations, three times the "
        "forward pass (`segret summary`), over the measured product. Memory: of ours what XLA "
        "plans for the program, of PyTorch the most that was allocated. Compilation ran beside "
        "that of other programs; PyTorch's is the time to the end of the first step. `(cached)`: "
        "read from JAX's cache; whether PyTorch read its own cache is not recorded."
    ))  # fmt: skip


def _inference(figures: dict[str, Line]) -> str:
    rows = []
    names = [f.split("/") for f in figures if f.startswith("inference/")]
    shapes = list(dict.fromkeys(name[3] for name in names))
    for variant in _variants(figures, "inference"):
        for shape in shapes:
            ours = figures.get(f"inference/{variant}/ours/{shape}", {})
            for key, name in FRAMEWORKS.items():
                if line := figures.get(f"inference/{variant}/{key}/{shape}"):
                    label = f"{variant}, {shape}"
                    rows.append([label, name, *_speed(line, ours, figures)[:4],
                                 _times(line, ours)])  # fmt: skip
    head = ("forward pass", "", "ms (least, most)", "images/s", "share of the bfloat16 peak",
            "device memory, GB", "its time over ours")  # fmt: skip
    return _markdown("## Inference", head, rows)


def _speed(line: Line, ours: Line, figures: dict[str, Line]) -> list[str]:
    peak, share = figures.get("peaks", {}).get("bf16_tflops"), ""
    if peak and ours:  # the count of operations is the same
        share = f"{100 * ours['tflops'] * ours['ms'] / line['ms'] / peak:.1f}%"
    return [
        f"{line['ms']:.1f} ({line['ms_min']:.1f}, {line['ms_max']:.1f})",
        f"{line['images_per_second']:.0f}",
        share,
        f"{line['memory_gb']:.2f}" if "memory_gb" in line else "",
        f"{line['compile_seconds']:.0f}" + " (cached)" * line.get("cached", False),
    ]


def _times(line: Line, ours: Line) -> str:
    return f"{line['ms'] / ours['ms']:.2f}" if ours and line is not ours else ""


def _parts(figures: dict[str, Line]) -> str:
    variants = _variants(figures, "parts")
    parts = {v: figures[f"parts/{v}"]["parts_ms"] for v in variants}
    names = sorted({part for of_variant in parts.values() for part in of_variant})
    rows = [
        [name, *(f"{parts[v][name]:.2f}" if name in parts[v] else "" for v in variants)]
        for name in sorted(names, key=lambda n: -max(parts[v].get(n, 0) for v in variants))
    ]
    if rows:
        rows.append(["all", *(f"{sum(parts[v].values()):.2f}" for v in variants)])
    return _markdown("## Where a train step's time goes, ms", ("part", *variants), rows, note=(
        "From a trace: each kernel counts for the innermost named scope of its HLO instruction, a "
        "fusion for that of its root."
    ))  # fmt: skip


def _kernels(figures: dict[str, Line]) -> str:
    rows = [
        [variant, f"`{kernel['name']}`", kernel["part"], f"{kernel['ms']:.2f}",
         f"{kernel['calls']:.0f}"]
        for variant in _variants(figures, "parts")
        for kernel in figures[f"parts/{variant}"]["kernels"]
    ]  # fmt: skip
    head = ("", "kernel", "part", "ms per step", "launches")
    return _markdown("## The slowest kernels of a train step", head, rows)


def _checks(figures: dict[str, Line]) -> str:
    rows = [
        [name, f"{line['worst']:.1e} of the RMS at most", _verdict(line)]
        for name, line in figures.items()
        if name.startswith("goldens/")
    ]
    if line := figures.get("pytest"):
        counts = ", ".join(f"{line[k]} {k}" for k in ("passed", "failed", "skipped", "errors"))
        rows.append(["`pytest -m gpu`", counts, _verdict(line)])
    return _markdown("## Checks", ("what", "found", ""), rows)


def _retention(figures: dict[str, Line]) -> str:
    rows = [
        [name.removeprefix("kernels/"), f"{line['ms']:.2f}", f"{line['formulas_ms']:.2f}",
         f"{max(line['errors'].values()):.1e}", "kernels" if line["triton_calls"] else "blocks",
         _verdict(line)]
        for name, line in figures.items() if name.startswith("kernels/")
    ]  # fmt: skip
    head = ("retention, forward and gradients", "ms", "by the formulas, ms", "largest error",
            "ran by", "")  # fmt: skip
    return _markdown("## Retention against its formulas", head, rows, note=(
        "Errors are ‖x - exact‖ / ‖exact‖ of the output and of each gradient, where exact are the "
        "formulas in float32 with exact products; float32 rows have exact products, too."
    ))  # fmt: skip


def _failed(lines: list[Line], figures: dict[str, Line]) -> str:
    errors = {x["figure"]: x["error"] for x in lines if "error" in x and x["figure"] not in figures}
    return _markdown("## Failed", ("figure", "error"), [[name, e] for name, e in errors.items()])


def _verdict(line: Line) -> str:
    return "right" if line["ok"] else "**wrong**"


def _variants(figures: dict[str, Line], kind: str) -> list[str]:
    found = {name.split("/")[1] for name in figures if name.startswith(f"{kind}/")}
    return sorted(found, key=lambda v: ORDER.index(v) if v in ORDER else len(ORDER))


def _markdown(title: str, head: tuple[str, ...], rows: list[list[str]], note: str = "") -> str:
    if not rows:
        return ""
    body = [head, ["---"] * len(head), *rows]
    lines = ["| " + " | ".join(row) + " |" for row in body]
    return "\n\n".join([title, *([note] if note else []), "\n".join(lines)])
