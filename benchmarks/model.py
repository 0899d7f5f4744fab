"""Time and memory of the model: python -m benchmarks.model --model segret_tiny --mode forward ….

Prints one JSON line per combination of the given models, modes, sizes, batches and dtypes, each
measured in a process of its own, so that peak memory is its own too:

    python -m benchmarks.model --model segret_tiny segman_tiny --size 512x512 --mode forward
    python -m benchmarks.model --model segret_tiny --size 256x256 --batch 2 --mode train
    python -m benchmarks.model --model segret_tiny --size 1024x2048 --mode labels

Modes: `forward` to the logits; `labels` on to the label map at the image's size;
`train` a whole step (forward, loss, backward, AdamW). Times are seconds, memory MB (10^6 bytes);
`share_of_peak` is of the operations that a large matrix product does per second in the same run.
`--parts` adds the share of each part of the model, `--quick` compares each fast path with the plain
one instead and exits with 1 if one does not win.
"""

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import paths
from benchmarks.machine import machine, peak_bandwidth, peak_flops, peak_memory, seconds
from benchmarks.trace import profile
from segret_jax.checkpoint.state import new_state
from segret_jax.cli import program
from segret_jax.cli.summary import MODELS, parse_size, published_model
from segret_jax.config import EvalConfig, ModelConfig, OptimConfig, TrainConfig
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.factory import ModelBundle, build
from segret_jax.models.families import get_family
from segret_jax.models.flops import operations
from segret_jax.models.kernels import platform_of
from segret_jax.parallel.mesh import data_mesh
from segret_jax.training.optimizer import make_optimizer
from segret_jax.training.step import compile_ahead, make_train_step

NUM_CLASSES = 150
MODES = ("forward", "labels", "train")
DTYPES = ("float32", "bfloat16")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["segret_tiny"], choices=MODELS)
    parser.add_argument("--mode", nargs="+", default=["forward"], choices=MODES)
    parser.add_argument("--size", nargs="+", default=["512x512"], help="HEIGHTxWIDTH")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--parts", action="store_true", help="trace where the time goes, too")
    parser.add_argument("--quick", action="store_true", help="compare fast paths with plain ones")
    args = parser.parse_args(argv)
    if args.quick:
        sys.exit(paths.main())
    cases = list(itertools.product(args.model, args.mode, args.size, args.batch, args.dtype))
    if len(cases) == 1:
        found = measure(*cases[0], repeats=args.repeats, parts=args.parts)
        print(json.dumps(machine() | found), flush=True)
        return
    for model, mode, size, batch, dtype in cases:
        command = ["--model", model, "--mode", mode, "--size", size, "--batch", str(batch)]
        command += ["--dtype", dtype, "--repeats", str(args.repeats), *["--parts"] * args.parts]
        subprocess.run([sys.executable, "-m", "benchmarks.model", *command], check=True)


def measure(
    model: str, mode: str, size: str, batch: int, dtype: str, *, repeats: int, parts: bool
) -> dict[str, Any]:
    """Return times, peak memory, and how near the machine's limit one combination comes."""
    h, w = parse_size(size)
    config = dataclasses.replace(published_model(model), dtype=dtype)
    make = {"forward": forward_case, "labels": labels_case, "train": train_case}[mode]
    start = time.perf_counter()
    case = make(config, (batch, h, w, 3))
    build_seconds = time.perf_counter() - start - case.compile_seconds
    times = seconds(case.run, repeats)
    median, memory = float(np.median(times)), peak_memory()
    passes = 3 if mode == "train" else 1  # the backward pass takes twice the forward one
    done = batch * passes * operations(config, NUM_CLASSES, (h, w)) / median
    limit = peak_flops(dtype)
    found = {
        "model": model, "mode": mode, "size": size, "batch": batch, "dtype": dtype,
        "matmul_precision": config.matmul_precision,
        "seconds": round(median, 4),
        "seconds_min": round(min(times), 4), "seconds_max": round(max(times), 4),
        "images_per_second": round(batch / median, 2),
        "compile_seconds": round(case.compile_seconds, 2), "build_seconds": round(build_seconds, 2),
        "peak_memory_mb": round(memory / 1e6),
        "gflops": round(done / 1e9, 1), "share_of_peak": round(done / limit, 3),
        "peak_gflops": round(limit / 1e9), "peak_gb_per_second": round(peak_bandwidth() / 1e9, 1),
    }  # fmt: skip
    if parts and case.compiled:
        hlo = str(case.compiled.as_text())
        found["parts"] = {k: round(v, 3) for k, v in profile(case.run, hlo).shares().items()}
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """A run to its end, what it took to compile, and what was compiled, if it is one program."""

    run: Callable[[], Any]
    compile_seconds: float
    compiled: jax.stages.Compiled | None = None


def forward_case(config: ModelConfig, shape: tuple[int, ...]) -> Case:
    graph, params, batch_stats = _model(config)
    image = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    function = jax.jit(lambda p, s, x: nnx.merge(graph, p, s)(x))
    compiled, seconds = _timed(lambda: function.lower(params, batch_stats, image).compile())
    return Case(lambda: compiled(params, batch_stats, image), seconds, compiled)


def labels_case(config: ModelConfig, shape: tuple[int, ...]) -> Case:
    graph, params, batch_stats = _model(config)
    _, h, w, _ = shape
    evaluation = EvalConfig(resize_target=(max(h, w), min(h, w)), multiple_of=1)
    predictor = Predictor(ModelBundle(graph, params, batch_stats), evaluation)
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
    start = time.perf_counter()
    predictor.label_map(image)  # compiles and runs once
    return Case(lambda: predictor.label_map(image), time.perf_counter() - start)


def train_case(config: ModelConfig, shape: tuple[int, ...]) -> Case:
    graph, params, batch_stats = _model(config)
    optimizer = make_optimizer(OptimConfig(), 100, get_family(config.family))
    state = new_state(params, batch_stats, optimizer)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.standard_normal(shape, np.float32)),
        "label": jnp.asarray(rng.integers(0, NUM_CLASSES, shape[:3], np.uint8)),
        "index": jnp.arange(shape[0], dtype=jnp.int32),
    }
    step = make_train_step(graph, optimizer, TrainConfig(), data_mesh())
    compiled, seconds = _timed(lambda: compile_ahead(step, state, batch))
    states = [state]

    def run() -> None:
        state, _ = compiled(states.pop(), batch)
        states.append(jax.block_until_ready(state))

    return Case(run, seconds, compiled)


def _model(config: ModelConfig) -> ModelBundle:
    return build(config, NUM_CLASSES, seed=0, platform=platform_of(jax.devices()))


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


if __name__ == "__main__":
    program.run(main)
