"""Compile a run ahead of time (AOT) for TPUs that are not there: does it fit, how fast can it be?

  segret aot --config ade_large --topology v5e:4x4

Compiles the training step, and the network of evaluation at its largest input, for a slice of TPU
chips, and prints memory per chip, operations, bytes moved, bytes sent between chips, and the
shortest time that the chips' published peaks allow. Needs libtpu (pip install 'jax[tpu]'), no TPU;
takes minutes. Exit status: 0 if all fits, 1 if not.
"""

import json
import os
import sys
from pathlib import Path

from segret_jax.aot.chips import parse, topology
from segret_jax.cli import arguments as cli
from segret_jax.config import check_segmentation, left_open
from segret_jax.errors import InputError

PROGRAMS = ("train", "eval")
STACK = 2**24  # bytes


def main(argv: list[str]) -> None:
    """Compile the config that `argv` names, and print what it needs."""
    parser = cli.Parser("aot", __doc__)
    parser.add_argument(
        "--config", required=True, help="the name of a shipped config, or your own FILE.py"
    )
    parser.add_argument("--topology", required=True, help="v4:2x2x4, v5e:4x4, v5p:…, v6e:…")
    parser.add_argument("--program", choices=PROGRAMS, help="default: both")
    parser.add_argument("--out", type=Path, help="also write the reports as JSON")
    args, overrides = parser.parse(argv)
    parse(args.topology)
    config = cli.apply_overrides(cli.load_config_file(args.config), overrides)
    check_segmentation(config.model)
    if is_open := left_open(config):
        raise InputError(f"only a run chooses {', '.join(is_open)}: give --config.KEY=VALUE")
    if args.out:
        cli.check_folder(f"--out {args.out}", args.out.parent)

    _prepare_compilers()
    from segret_jax.aot.report import evaluation_report, to_text, train_report

    chips = topology(args.topology)
    compilers = {"train": train_report, "eval": evaluation_report}
    reports = []
    for program in (args.program,) if args.program else PROGRAMS:
        reports.append(compilers[program](config, chips))
        print(to_text(reports[-1]), flush=True)
        if args.out:
            cli.write_output(f"--out {args.out}", args.out, json.dumps(reports, indent=1) + "\n")
    sys.exit(0 if all(report["fits"] for report in reports) else 1)


def _prepare_compilers() -> None:
    """Set the environment so that JAX looks for no TPU and libtpu does not report that.

    libtpu compiles in threads of 64 KiB, whatever ulimit says, and for v6e it needs more.
    """
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    stack = f"--fibers_default_thread_stack_size={STACK}"
    os.environ["LIBTPU_INIT_ARGS"] = f"{stack} {flags}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name in ("TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    # Only to keep libtpu from asking a cloud; the topology is that of --topology.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is shared: no chip is used
