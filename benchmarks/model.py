"""Time and memory of the model: python -m benchmarks.model --variant tiny --mode forward ….

Prints one JSON line per combination of the given variants, modes, sizes, batches and dtypes, each
measured in a process of its own, so that peak memory is its own too:

    python -m benchmarks.model --variant tiny small --size 512x512 --batch 1 --mode forward
    python -m benchmarks.model --variant tiny --size 256x256 --batch 2 --mode train
    python -m benchmarks.model --variant tiny --size 1024x2048 --mode labels

Modes: `forward` to the logits at stride 4; `labels` on to the label map at the image's size;
`train` a whole step (forward, loss, backward, AdamW). Times are seconds, memory MB (10^6 bytes).
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from segret_jax import cli
from segret_jax.config import EvalConfig, ModelConfig, OptimConfig, TrainConfig
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.rmt import VARIANTS
from segret_jax.summary import parse_size
from segret_jax.training.optim import make_optimizer
from segret_jax.training.sharding import data_mesh
from segret_jax.training.state import build, new_state
from segret_jax.training.step import make_train_step

NUM_CLASSES = 150
MODES = ("forward", "labels", "train")
DTYPES = ("float32", "bfloat16")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", nargs="+", default=["tiny"], choices=VARIANTS)
    parser.add_argument("--mode", nargs="+", default=["forward"], choices=MODES)
    parser.add_argument("--size", nargs="+", default=["512x512"], help="HEIGHTxWIDTH")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(argv)
    cases = list(itertools.product(args.variant, args.mode, args.size, args.batch, args.dtype))
    if len(cases) == 1:
        print(json.dumps(machine() | measure(*cases[0], repeats=args.repeats)), flush=True)
        return
    for variant, mode, size, batch, dtype in cases:
        command = ["--variant", variant, "--mode", mode, "--size", size, "--batch", str(batch)]
        command += ["--dtype", dtype, "--repeats", str(args.repeats)]
        subprocess.run([sys.executable, "-m", "benchmarks.model", *command], check=True)


def machine() -> dict[str, Any]:
    """Return what a figure must be read with."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def measure(
    variant: str, mode: str, size: str, batch: int, dtype: str, *, repeats: int
) -> dict[str, Any]:
    """Return times and peak memory of one combination."""
    h, w = parse_size(size)
    config = ModelConfig(variant=variant, dtype=dtype)
    make = {"forward": forward_case, "labels": labels_case, "train": train_case}[mode]
    start = time.perf_counter()
    run, compile_seconds = make(config, (batch, h, w, 3))
    build_seconds = time.perf_counter() - start - compile_seconds
    run()  # warm up
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return {
        "variant": variant, "mode": mode, "size": size, "batch": batch, "dtype": dtype,
        "matmul_precision": config.matmul_precision,
        "seconds": round(float(np.median(times)), 4),
        "seconds_min": round(min(times), 4), "seconds_max": round(max(times), 4),
        "images_per_second": round(batch / float(np.median(times)), 2),
        "compile_seconds": round(compile_seconds, 2), "build_seconds": round(build_seconds, 2),
        "peak_memory_mb": round(peak_memory() / 1e6),
    }  # fmt: skip


Case = tuple[Callable[[], Any], float]  # a run to its end, and the seconds of its compilation


def forward_case(config: ModelConfig, shape: tuple[int, ...]) -> Case:
    graph, params, batch_stats = build(config, NUM_CLASSES, seed=0)
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    function = jax.jit(lambda p, s, x: nnx.merge(graph, p, s)(x))
    compiled, seconds = _compiled(function, params, batch_stats, image)
    return lambda: jax.block_until_ready(compiled(params, batch_stats, image)), seconds


def labels_case(config: ModelConfig, shape: tuple[int, ...]) -> Case:
    graph, params, batch_stats = build(config, NUM_CLASSES, seed=0)
    _, h, w, _ = shape
    evaluation = EvalConfig(resize_target=(max(h, w), min(h, w)), multiple_of=1)
    predictor = Predictor(graph, params, batch_stats, evaluation)
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
    start = time.perf_counter()
    predictor.label_map(image)  # compiles and runs once
    return lambda: predictor.label_map(image), time.perf_counter() - start


def train_case(config: ModelConfig, shape: tuple[int, ...]) -> Case:
    graph, params, batch_stats = build(config, NUM_CLASSES, seed=0)
    optimizer = make_optimizer(OptimConfig(), params, 100)
    state = new_state(params, batch_stats, optimizer)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal(shape, np.float32),
        "label": rng.integers(0, NUM_CLASSES, shape[:3], np.uint8),
        "index": np.arange(shape[0], dtype=np.int32),
    }
    step = make_train_step(graph, optimizer, TrainConfig(), data_mesh())
    compiled, seconds = _compiled(step, state, batch)
    states = [state]

    def run() -> None:
        state, _ = compiled(states.pop(), batch)
        states.append(jax.block_until_ready(state))

    return run, seconds


def _compiled(function: Any, *args: Any) -> tuple[Callable, float]:
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    return compiled, time.perf_counter() - start


def peak_memory() -> int:
    """Return the peak bytes of the accelerator, or of this process on CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    cli.run(main)
