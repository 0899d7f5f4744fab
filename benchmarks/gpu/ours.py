"""The jobs of this project: peaks, checks, train step with its time by part, inference, tests."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from benchmarks import trace
from benchmarks.gpu import checks, toy
from benchmarks.gpu.results import ROOT
from benchmarks.gpu.worker import Figures, Measure
from benchmarks.machine import machine, peak_bandwidth, peak_flops, peak_memory, seconds
from benchmarks.model import NUM_CLASSES, Case, forward_case, train_case
from segret_jax.config import ModelConfig, choose_family
from segret_jax.errors import InputError
from segret_jax.models.flops import operations
from segret_jax.models.kernels import platform_of
from segret_jax.run import compilation
from segret_jax.run.compilation import CACHE_HIT

SLOWEST = 10  # kernels that are listed
TENSOR_FLOAT_32 = 8.0  # compute capability of the oldest GPUs that have it: A100, RTX 30


def start(spec: dict[str, Any]) -> dict[str, Any]:
    """Set JAX up; return what each line of the results says of machine and versions."""
    compilation.use_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if spec["dry_run"]:
        jax.config.update("jax_disable_most_optimizations", True)
        toy.add()
    elif jax.default_backend() != "gpu":
        raise InputError("JAX sees no NVIDIA GPU here; --dry-run runs every job in tiny")
    client: Any = jax.devices()[0].client
    return machine() | {"platform": client.platform_version.splitlines()[0]}


def peaks(*, size: int) -> Measure:
    """Measure what a large matrix product and a copy reach on this device."""

    def measure() -> Figures:
        bf16 = peak_flops("bfloat16", size=size)
        found = {"bf16_tflops": bf16 / 1e12, "copy_gb_per_second": peak_bandwidth() / 1e9}
        capability = platform_of(jax.devices()).capability
        if capability is None or capability >= TENSOR_FLOAT_32:
            found["tf32_tflops"] = peak_flops("float32", tf32=True, size=size) / 1e12
        yield "peaks", found

    return measure


def train(model: str, size: tuple[int, int], *, batch: int, dtype: str, repeats: int) -> Measure:
    """Time a training step, then trace where its time goes."""
    config = _config(model, dtype)
    with _cache_events() as events:
        case = train_case(config, (batch, *size, 3))

    def measure() -> Figures:
        speed = _speed(config, case, size, batch=batch, passes=3, repeats=repeats)
        yield "train", speed | {"cached": events[-1:] == [CACHE_HIT]}
        assert case.compiled
        profile = trace.profile(case.run, str(case.compiled.as_text()))
        slowest = profile.kernels[:SLOWEST]
        yield (
            "parts",
            {
                "parts_ms": {part: 1e3 * seconds for part, seconds in profile.parts.items()},
                "kernels": [
                    {"name": k.name[:120], "part": k.part, "ms": 1e3 * k.seconds, "calls": k.calls}
                    for k in slowest
                ],
            },
        )

    return measure


def inference(
    model: str, size: tuple[int, int], *, batch: int, dtype: str, repeats: int
) -> Measure:
    """Time a forward pass from normalized images to the logits at the model's stride."""
    config = _config(model, dtype)
    case = forward_case(config, (batch, *size, 3))

    def measure() -> Figures:
        yield "inference", _speed(config, case, size, batch=batch, passes=1, repeats=repeats)

    return measure


def _config(model: str, dtype: str) -> ModelConfig:
    """Return the settings of a model such as segman_tiny, a toy's too."""
    family, variant = model.split("_")
    config = ModelConfig(variant=variant, dtype=dtype)
    choose_family(config, family)
    return config


@contextmanager
def _cache_events() -> Iterator[list[str]]:
    """Collect the hits and misses of JAX's compilation cache in this thread, the step's last."""
    events: list[str] = []
    thread = threading.get_ident()  # other jobs compile at the same time

    def listen(event: str, **_: Any) -> None:
        if event.startswith("/jax/compilation_cache/cache_") and threading.get_ident() == thread:
            events.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _speed(
    config: ModelConfig, case: Case, size: tuple[int, int], *, batch: int, passes: int, repeats: int
) -> dict[str, Any]:
    """Return time, memory and operations; `passes` is 3 with the backward pass, which takes two."""
    times = seconds(case.run, repeats)
    median = float(np.median(times))
    done = batch * passes * operations(config, NUM_CLASSES, size)  # an analytic count
    assert case.compiled
    memory: Any = case.compiled.memory_analysis()
    needed = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    return {
        "ms": 1e3 * median, "ms_min": 1e3 * min(times), "ms_max": 1e3 * max(times),
        "images_per_second": batch / median,
        "tflops": done / median / 1e12,
        "memory_gb": needed / 1e9,  # XLA's plan, which the step takes while it runs
        "process_peak_gb": peak_memory() / 1e9,
        "compile_seconds": case.compile_seconds,
        "triton_calls": str(case.compiled.as_text()).count(checks.TRITON),
    }  # fmt: skip


def pytest(path: str, *, seconds: float) -> Measure:
    """Run tests that need a GPU, with nothing of pytest but what they need.

    No installed plugin is loaded and no option of pyproject.toml is used; another JAX than the
    pinned one may warn.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", path, "-q", "-o", "addopts="]
    command += ["-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False
    )
    print(done.stdout, done.stderr, file=sys.stderr)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (\w+)", _last_line(done.stdout))}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)

    def measure() -> Figures:
        found = {what: counts.get(what, 0) for what in ("passed", "failed", "skipped", "errors")}
        ran = found["passed"] > 0 or jax.default_backend() != "gpu"  # a dry run skips them all
        yield "pytest", {**found, "names": failed, "ok": done.returncode == 0 and ran}

    return measure


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


JOBS = {
    "peaks": peaks, "kernels": checks.kernels, "goldens": checks.goldens,
    "train": train, "inference": inference, "pytest": pytest,
}  # fmt: skip
