"""This project beside another model, both in processes of their own, timed in turns.

    python -m benchmarks.against benchmarks/peers/segformer.py --variant tiny --mode train …
    python -m benchmarks.against FOLDER_OF_THE_ORIGINAL --variant tiny …

The folder is a checkout of the original's sources, which benchmarks/peers/original.py runs. A file
has a function `make(variant, mode, batch, height, width, dtype=…, compiled=…)`, mode forward or
train, which returns what to call for one run to its end; it is imported in an environment that has
what it needs beside this project. A turn is two runs, of which the second is timed.

This project's model is SegRet: SegMAN's original needs CUDA extensions.

On a GPU, which both use, say XLA_PYTHON_CLIENT_PREALLOCATE=false, so that ours leaves room.

Ours starts from a warm compilation cache, so that its peak of memory, as the other's, is that of
running; compilation is measured by benchmarks.model. Memory is the host's.
"""

import argparse
import functools
import json
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segret_jax.cli import program
from segret_jax.config import ModelConfig

# JAX is imported where it is used: it must not count in the other's memory.
OURS = "segret_jax"
PAUSE = 0.5  # seconds
VARIANTS = ("tiny", "small", "base", "large")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "file", help="what to run beside this project: a file or the original's folder"
    )
    parser.add_argument("--variant", default="tiny", choices=VARIANTS)
    parser.add_argument("--mode", default="forward", choices=("forward", "train"))
    parser.add_argument("--size", default="512x512", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compiled", action="store_true", help="the other by torch.compile")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # a cache's folder: be one of the two
    args = parser.parse_args(argv)
    if args.serve:
        serve(args)
    else:
        from benchmarks.machine import machine

        print(json.dumps(machine() | compare(args, argv)))


def compare(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Return both medians and peaks of memory, and their ratios, the other's over ours."""
    with tempfile.TemporaryDirectory() as cache:
        settings = [*(arg for arg in argv if arg != args.file), "--serve", cache]
        _Server([OURS, *settings]).end()  # fills the cache
        ours, other = _Server([OURS, *settings]), _Server([args.file, *settings])
        times = np.array([[ours.run(), other.run()] for _ in range(args.rounds + 1)])[1:]
        memory = np.array([ours.end(), other.end()])
    medians = np.median(times, axis=0)
    return {
        "against": "original" if Path(args.file).is_dir() else Path(args.file).stem,
        "variant": args.variant, "mode": args.mode,
        "size": args.size, "batch": args.batch, "dtype": args.dtype, "compiled": args.compiled,
        "rounds": args.rounds,
        "seconds": medians.round(4).tolist(), "times_as_fast": round(medians[1] / medians[0], 2),
        "seconds_min": times.min(0).round(4).tolist(),
        "seconds_max": times.max(0).round(4).tolist(),
        "peak_memory_mb": (memory / 1e6).round().tolist(),
        "share_of_memory": round(memory[0] / memory[1], 2),
    }  # fmt: skip


class _Server:
    """A process that runs one of the two whenever it is asked."""

    def __init__(self, arguments: list[str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.against", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self) -> float:
        """Return the seconds of a second run, after a pause in which the other's threads sleep."""
        time.sleep(PAUSE)
        return self._ask("run")

    def end(self) -> int:
        """End the process; return the peak of its memory in bytes."""
        peak = int(self._ask("end"))
        self._process.communicate()
        return peak

    def _ask(self, what: str) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"it ended with status {self._process.wait()}")
        return float(answer)


def serve(args: argparse.Namespace) -> None:
    """Run, or end, as asked on the standard input, and answer with seconds, or bytes."""
    h, w = map(int, args.size.split("x"))
    settings = {"dtype": args.dtype, "compiled": args.compiled}
    run = make(args.file, args.serve)(args.variant, args.mode, args.batch, h, w, **settings)
    for line in sys.stdin:
        if line == "end\n":
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
            return
        # Not timed: memory that a sleeping process has freed may have gone back to the host of a
        # virtual machine, and getting it again is no part of a run among others.
        run()
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


def make(file: str, cache: str) -> Callable[..., Callable[[], None]]:
    """Return the `make` of a file, or our own."""
    if file == OURS:
        import jax

        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        return _make_ours
    if Path(file).is_dir():
        peer = runpy.run_path(str(Path(__file__).parent / "peers" / "original.py"))
        return functools.partial(peer["make"], Path(file))
    return runpy.run_path(file)["make"]


def _make_ours(
    variant: str, mode: str, batch: int, h: int, w: int, *, dtype: str, compiled: bool
) -> Callable[[], None]:
    import jax

    from benchmarks.model import forward_case, train_case

    case = {"forward": forward_case, "train": train_case}[mode]
    del compiled  # always is
    run = case(ModelConfig(variant=variant, dtype=dtype), (batch, h, w, 3)).run
    return lambda: jax.block_until_ready(run())


if __name__ == "__main__":
    program.run(main)
