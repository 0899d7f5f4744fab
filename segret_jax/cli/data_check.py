"""Look for faults in the labels and images of a dataset, before a run.

  segret data check DIR --dataset ade20k

Reads every pair of image and label, in a folder or prepared, on all cores; names what is wrong
with it and how to mend it, and writes a report with pictures. Exit status: 0 without errors, 1
with errors, 2 if there was nothing to check or the report cannot be written.
"""

import sys
import time
from pathlib import Path

from segret_jax.cli import arguments as cli
from segret_jax.data.names import check_dataset
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Check the dataset that `argv` names; exit with status 1 if it has errors."""
    parser = cli.Parser("data check", __doc__, has_settings=False)
    parser.add_argument("path", metavar="DIR", help="the folder that training is given")
    parser.add_argument("--dataset", required=True, help="a name, or your own as a .json file")
    parser.add_argument(
        "--split", choices=("training", "validation"), help="default: all that are there"
    )
    parser.add_argument("--report", type=Path, default="label_check", help="folder to write to")
    parser.add_argument("--workers", type=int, default=0, help="processes; default: all cores")
    parser.add_argument("--seed", type=int, default=0, help="of the random samples that are shown")
    args = parser.parse_args(argv)
    if args.workers < 0:
        raise InputError(f"--workers is {args.workers}; it must be 0 (all cores) or more")
    check_dataset(args.dataset)

    from segret_jax.data.datasets import get_dataset
    from segret_jax.doctor.check import check
    from segret_jax.doctor.findings import ERROR
    from segret_jax.doctor.report import summary, write_report

    spec = get_dataset(args.dataset)
    cli.check_folder(f"--report {args.report}", args.report)
    start = time.monotonic()
    diagnosis = check(spec, args.path, split=args.split, workers=args.workers)
    print(summary(diagnosis), flush=True)
    write_report(diagnosis, args.report, seed=args.seed)
    print(f"{time.monotonic() - start:.0f} s; report: {args.report / 'index.html'}")
    if diagnosis.count(ERROR):
        sys.exit(1)
