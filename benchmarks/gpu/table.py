"""The results as Markdown, for benchmarks/results."""

from typing import Any

Line = dict[str, Any]
FRAMEWORKS = {"ours": "segret_jax", "original": "original, eager", "torch.compile": "original, "
              "`torch.compile`"}  # fmt: skip
FAMILIES, VARIANTS = ("segret", "segman"), ("tiny", "small", "base", "large")
ORDER = [f"{family}_{variant}" for family in FAMILIES for variant in VARIANTS]


def table(lines: list[Line]) -> str:
    """Return tables of the newest figure of each name; dry runs only if there is nothing else."""
    real = [line for line in lines if not line.get("dry_run")]
    figures = {line["figure"]: line for line in real or lines if "error" not in line}
    sections = [
        _machine(list(figures.values()) or lines), _peaks(figures), _train(figures),
        _parts(figures), _slowest(figures), _inference(figures), _checks(figures),
        _kernels(figures), _failed(real or lines, figures),
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
    for model in _models(figures, "train"):
        ours = figures.get(f"train/{model}/ours", {})
        for key, name in FRAMEWORKS.items():
            if line := figures.get(f"train/{model}/{key}"):
                rows.append([model, name, *_speed(line, ours, figures), _times(line, ours)])
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
    for model in _models(figures, "inference"):
        for shape in shapes:
            ours = figures.get(f"inference/{model}/ours/{shape}", {})
            for key, name in FRAMEWORKS.items():
                if line := figures.get(f"inference/{model}/{key}/{shape}"):
                    label = f"{model}, {shape}"
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
    models = _models(figures, "parts")
    parts = {m: figures[f"parts/{m}"]["parts_ms"] for m in models}
    names = sorted({part for of_variant in parts.values() for part in of_variant})
    rows = [
        [name, *(f"{parts[m][name]:.2f}" if name in parts[m] else "" for m in models)]
        for name in sorted(names, key=lambda n: -max(parts[m].get(n, 0) for m in models))
    ]
    if rows:
        rows.append(["all", *(f"{sum(parts[m].values()):.2f}" for m in models)])
    return _markdown("## Where a train step's time goes, ms", ("part", *models), rows, note=(
        "From a trace: each kernel counts for the innermost named scope of its HLO instruction, a "
        "fusion for that of its root."
    ))  # fmt: skip


def _slowest(figures: dict[str, Line]) -> str:
    rows = [
        [model, f"`{kernel['name']}`", kernel["part"], f"{kernel['ms']:.2f}",
         f"{kernel['calls']:.0f}"]
        for model in _models(figures, "parts")
        for kernel in figures[f"parts/{model}"]["kernels"]
    ]  # fmt: skip
    head = ("", "kernel", "part", "ms per step", "launches")
    return _markdown("## The slowest kernels of a train step", head, rows)


def _checks(figures: dict[str, Line]) -> str:
    rows = [
        [name, f"{line['worst']:.1e} of the RMS at most", _verdict(line)]
        for name, line in figures.items()
        if name.startswith("goldens/")
    ]
    for name, line in figures.items():
        if name.startswith("pytest/"):
            counts = ", ".join(f"{line[k]} {k}" for k in ("passed", "failed", "skipped", "errors"))
            file = name.removeprefix("pytest/")
            rows.append([f"`pytest -m gpu`, {file}", counts, _verdict(line)])
    return _markdown("## Checks", ("what", "found", ""), rows)


def _kernels(figures: dict[str, Line]) -> str:
    rows = []
    for name, line in figures.items():
        if name.startswith("kernels/"):
            times = [
                f"{found.get('kernels_ms', found['ms']):.3f}" for found in line["passes"].values()
            ]
            ratios = [_over_floor(found) for found in line["passes"].values()]
            rows.append([
                name.removeprefix("kernels/"), *times, *ratios, f"{line['formulas_ms']:.2f}",
                f"{max(line['errors'].values()):.1e}",
                "kernels" if line["triton_calls"] else "blocks", _verdict(line),
            ])  # fmt: skip
    head = ("operation", "forward, ms", "with gradients, ms", "forward over its floor",
            "with gradients over its floor", "formulas with gradients, ms", "largest error",
            "ran by", "")  # fmt: skip
    return _markdown("## Kernels against their formulas", head, rows, note=(
        "Times are those of the kernels in a trace, if there is one. The floor is the largest of "
        "three, which is named: bytes, multiply-adds and exponentials of the operation over what "
        "the device did per second in the same run (`benchmarks/operations.py`). The aim is 3 for "
        "the scan with gradients and 2.5 for neighborhood attention. Errors are "
        "‖x - exact‖ / ‖exact‖ of the output and of each gradient, where exact are the formulas in "
        "float32 with exact products; float32 rows have exact products, too."
    ))  # fmt: skip


def _over_floor(found: Line) -> str:
    floors = {k: v for k, v in found.items() if k.endswith("_floor_ms")}
    largest = max(floors, key=lambda key: floors[key]).removesuffix("_floor_ms")
    return f"{found['over_largest_floor']:.2f} ({largest.replace('_', '-')})"


def _failed(lines: list[Line], figures: dict[str, Line]) -> str:
    errors = {x["figure"]: x["error"] for x in lines if "error" in x and x["figure"] not in figures}
    return _markdown("## Failed", ("figure", "error"), [[name, e] for name, e in errors.items()])


def _verdict(line: Line) -> str:
    return "right" if line["ok"] else "**wrong**"


def _models(figures: dict[str, Line], kind: str) -> list[str]:
    found = {name.split("/")[1] for name in figures if name.startswith(f"{kind}/")}
    return sorted(found, key=lambda m: ORDER.index(m) if m in ORDER else len(ORDER))


def _markdown(title: str, head: tuple[str, ...], rows: list[list[str]], note: str = "") -> str:
    if not rows:
        return ""
    body = [head, ["---"] * len(head), *rows]
    lines = ["| " + " | ".join(row) + " |" for row in body]
    return "\n\n".join([title, *([note] if note else []), "\n".join(lines)])
