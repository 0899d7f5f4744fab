"""Certify that a checkpoint's weights compute what they should.

  segret verify CHECKPOINT [--reference FILE.npz]

With a reference, tensors captured from the PyTorch model, each stage's map, the logits and their
arg-max are compared with it; without one, the float32 and bfloat16 forward with a float64 forward
of the same weights. Prints a certificate; --out writes it. Exit status: 0 pass, 1 fail, 2 error.
"""

import json
import sys
from pathlib import Path

from segret_jax.checkpoint.folders import find
from segret_jax.cli import arguments as cli
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Write the certificate of the checkpoint that `argv` names."""
    parser = cli.Parser("verify", __doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=cli.MODEL_HELP)
    parser.add_argument("--reference", type=Path, metavar="FILE.npz")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="written with FILE.md beside")
    args, overrides = parser.parse(argv)
    if args.out and args.out.suffix != ".json":
        raise InputError(f"--out {args.out}: give a name that ends in .json; FILE.md lies beside")
    if args.out:
        cli.check_folder(f"--out {args.out}", args.out.parent)
    checkpoint = find(args.checkpoint)

    from segret_jax.checkpoint import model as checkpoints
    from segret_jax.verify.certificate import certify, plain, to_text

    config = checkpoints.load_config(checkpoint)
    config.model.matmul_precision = "highest"  # as PyTorch; the command line may change it
    config = cli.apply_overrides(config, overrides)
    num_classes = checkpoints.load_table(checkpoint).num_classes
    variables = checkpoints.load_model(checkpoint, config).variables
    certificate = certify(config.model, num_classes, variables, reference=args.reference)
    text = to_text(certificate)
    print(text)
    if args.out:
        content = json.dumps(plain(certificate), indent=2) + "\n"
        cli.write_output(f"--out {args.out}", args.out, content)
        cli.write_output(f"--out {args.out}", args.out.with_suffix(".md"), text + "\n")
    sys.exit(0 if certificate["verdict"] == "pass" else 1)
