"""Check what weights compute: python -m segret_jax.verify CHECKPOINT [--reference FILE.npz].

With a reference, tensors captured from the PyTorch model (docs/weights.md), each stage's map, the
logits and their arg-max are compared with it; without one, the float32 and bfloat16 forward with
a float64 forward of the same weights. Prints a certificate; --out writes it. Exit status: 0 pass,
1 fail, 2 error.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from segret_jax import cli
from segret_jax.errors import InputError
from segret_jax.files import make_folder, write_whole, writing


def main(argv: list[str]) -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="or a run's folder")
    parser.add_argument("--reference", type=Path, metavar="FILE.npz")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="written with FILE.md beside")
    args, overrides = parser.parse(argv)
    if args.out and args.out.suffix != ".json":
        raise InputError(f"--out {args.out}: give a name that ends in .json; FILE.md lies beside")
    if args.out:
        with writing(f"--out {args.out}"):
            make_folder(args.out.parent)  # known before the work, not after

    from segret_jax.evaluation.certificate import certify  # heavy imports, after the arguments
    from segret_jax.training import checkpoint as checkpoints

    checkpoint = checkpoints.find(args.checkpoint)
    config = checkpoints.load_config(checkpoint)
    config.model.matmul_precision = "highest"  # as PyTorch's, unless the command line asks else
    config = cli.apply_overrides(config, overrides)
    num_classes = checkpoints.load_table(checkpoint).num_classes
    _, *variables = checkpoints.load_model(checkpoint, config)
    certificate = certify(config.model, num_classes, tuple(variables), reference=args.reference)
    text = to_text(certificate)
    print(text)
    if args.out:
        with writing(f"--out {args.out}"):
            write_whole(args.out, json.dumps(_strict(certificate), indent=2) + "\n")
            write_whole(args.out.with_suffix(".md"), text + "\n")
    sys.exit(0 if certificate["verdict"] == "pass" else 1)


def to_text(certificate: dict[str, Any]) -> str:
    """Return a certificate as Markdown."""
    from segret_jax.evaluation.certificate import PARTS

    stages, tolerance = certificate["starts_in"], certificate["tolerance"]
    lines = [
        f"# {certificate['verdict'].upper()}: {certificate['model']}, against "
        f"{certificate['compared_with']}",
        "",
        f"float32 passes where no value is further off than {tolerance:g} of the RMS; 1e-5 is "
        "typical.",
    ]
    if stages:
        places = "; or ".join(f"{stage}: {PARTS[stage]}" for stage in stages)
        lines += ["", f"**It goes wrong first in {places}.**"]
    if len(stages) > 1:
        lines += ["", f"Which of them, a reference with {', '.join(stages[:-1])} would tell."]
    lines += ["", "| forward | stage | largest error / RMS | RMS of the error / RMS |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, comparison in certificate["comparisons"].items():
        for part, error in comparison["errors"].items():
            lines.append(f"| {name} | {part} | {error['largest']:.1e} | {error['rms']:.1e} |")
    lines.append("")
    for name, comparison in certificate["comparisons"].items():
        equal, count = comparison["argmax"]["equal"], comparison["argmax"]["of"]
        lines.append(f"- arg-max, {name}: {equal:,} of {count:,} equal ({equal / count:.3%})")
    for key in ("settings", "device", "matmul_precision", "versions"):
        value = certificate[key]
        told = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {key.replace('_', ' ')}: {told}")
    for key in ("weights", "reference", "code"):
        lines.append(f"- SHA-256 of {key}: {certificate[key] or 'none'}")
    return "\n".join(lines)


def _strict(value: Any) -> Any:
    """Return what JSON holds: it has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    cli.run(main)
