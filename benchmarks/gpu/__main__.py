"""Measure this project on a GPU, beside the PyTorch original, within a bounded time.

    python -m benchmarks.gpu --out DIR --seconds 300 [--original FOLDER] [--only NAME ...]
    python -m benchmarks.gpu --table DIR/results.jsonl
    python -m benchmarks.gpu --dry-run        # every job in tiny, on any machine

Each figure is a line of DIR/results.jsonl as soon as it is known. What did not fit into the time is
named at the end; the same command again goes on with what is missing. benchmarks/README.md says how
to prepare a machine without a network.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import plan, results
from benchmarks.gpu.schedule import Schedule, Task
from benchmarks.gpu.table import table
from segret_jax.cli import program
from segret_jax.errors import InputError

FILE, LOG = "results.jsonl", "log.txt"
LATE = "no time left"
MODULES = {"ours": "benchmarks.gpu.ours", "original": "benchmarks.gpu.original"}
THREADS = 6  # that compile in a process


def main(argv: list[str]) -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="of the results; default: runs/gpu")
    parser.add_argument("--seconds", type=float, default=300, help="of the whole command")
    parser.add_argument("--original", type=Path, help="a checkout of the original's sources")
    parser.add_argument("--only", nargs="+", default=[], help="figures, such as train/segman_tiny")
    parser.add_argument("--parallel", type=int, default=max(2, (os.cpu_count() or 2) // 3),
                        help="processes that compile at the same time")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--table", nargs="+", type=Path, help="print results as Markdown")
    args = parser.parse_args(argv)
    if args.table:
        lines = [results.read(file) for file in args.table]
        for file, found in zip(args.table, lines, strict=True):
            if not found:
                raise InputError(f"--table {file}: there are no results; give {FILE} of a --out")
        print(table([line for found in lines for line in found]))
        return
    if args.out is None:
        dry_run = args.dry_run
        args.out = Path(tempfile.mkdtemp(prefix="segret_gpu_") if dry_run else "runs/gpu")
    sys.exit(measure(args, begun + args.seconds))


def measure(args: argparse.Namespace, deadline: float) -> int:
    """Run what is missing until the deadline; return 1 if a job failed, else 0."""
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / FILE
    old = results.read(file)
    done = results.known(old, dry_run=args.dry_run)
    chosen = plan.select(plan.workers(dry_run=args.dry_run), args.only)
    impossible = _impossible(args.original)
    todo = [w.without(done) for w in chosen if w.framework not in impossible]
    tasks = [Task(w.name, _command(w, file, args)) for w in todo if w.jobs]
    schedule = Schedule(
        tasks, deadline=deadline - 1, parallel=args.parallel, log=args.out / LOG,
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, say=_say,
    )  # fmt: skip
    schedule.run()

    new = results.read(file)[len(old) :]
    failed = {line["figure"]: line["error"] for line in new if "error" in line}
    newest = results.newest([*old, *new], dry_run=args.dry_run)
    figures = {figure for w in chosen for job in w.jobs for figure in job.figures}
    failed |= {f: "wrong" for f in figures & newest.keys() if newest[f].get("ok") is False}
    done = results.known([*old, *new], dry_run=args.dry_run)
    skipped = {}
    for worker in chosen:
        why = impossible.get(worker.framework) or schedule.crashes.get(worker.name, LATE)
        for figure in [f for job in worker.jobs for f in job.figures]:
            if figure not in done and figure not in failed:
                skipped[figure] = why
    _report(f"{len(new)} new lines in {file}", failed, skipped)
    late = args.dry_run and LATE in skipped.values()
    return int(bool(failed or schedule.crashes or late))


def _impossible(original: Path | None) -> dict[str, str]:
    """Return {framework: why none of its jobs can run}."""
    if original is None:
        return {"original": "--original is not given"}
    if not (original / "mmseg").is_dir():
        raise InputError(f"--original {original} has no folder mmseg: give a checkout of SegRet")
    if importlib.util.find_spec("torch") is None:
        return {"original": "PyTorch is not installed"}
    return {}


def _command(worker: plan.Worker, file: Path, args: argparse.Namespace) -> Any:
    facts: dict[str, Any] = {"commit": results.commit()}
    facts |= {"dry_run": True} if args.dry_run else {}

    def command(seconds: float, attempt: int) -> list[str] | None:
        done = results.known(results.read(file), dry_run=args.dry_run)
        fitting = worker.without(done).within(seconds)
        if not fitting.jobs:
            return None
        is_parallel = worker.framework == "ours" and attempt == 1
        spec = {
            "module": MODULES[worker.framework],
            "jobs": [vars(job) for job in fitting.jobs],
            "results": str(file.resolve()),
            "original": str(args.original),
            "threads": THREADS if is_parallel else 1,  # which may be why it crashed
            "dry_run": args.dry_run,
            "facts": facts,
        }
        return [sys.executable, "-m", "benchmarks.gpu.worker", json.dumps(spec)]

    return command


def _report(found: str, failed: dict[str, str], skipped: dict[str, str]) -> None:
    _say(found)
    for what, reasons in (("failed", failed), ("skipped", skipped)):
        for figure, reason in reasons.items():
            _say(f"{what}: {figure} ({reason})")
    if LATE in skipped.values():
        _say("run the same command again to measure what was skipped")


def _say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    program.run(main)
