"""The jobs of the PyTorch original: train step and inference, eager and by torch.compile."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.worker import Figures, Measure
from benchmarks.machine import date_and_cores
from benchmarks.peers.original import make

_sources = Path()


def start(spec: dict[str, Any]) -> dict[str, Any]:
    """Remember where the sources are; return what each line of the results says."""
    global _sources
    _sources = Path(spec["original"])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # as the defaults of JAX on a GPU: TF32
    return date_and_cores() | {"device": device, "torch": torch.__version__}


def measured(
    variant: str, mode: str, size: tuple[int, int], *, batch: int, dtype: str, compiled: bool,
    repeats: int,
) -> Measure:  # fmt: skip
    """Compile, if that is asked, and run once; then time."""
    before, begun = _allocated(), time.perf_counter()
    peer_mode = {"train": "train", "inference": "forward"}[mode]
    run = make(_sources, variant, peer_mode, batch, *size, dtype=dtype, compiled=compiled)
    run()
    first_run = time.perf_counter() - begun
    own = _allocated() - before

    def measure() -> Figures:
        others = _allocated() - own  # of jobs that are timed later
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeats + 1):  # each waits for the device
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        median = float(np.median(times[1:]))
        found = {
            "ms": 1e3 * median, "ms_min": 1e3 * min(times[1:]), "ms_max": 1e3 * max(times[1:]),
            "images_per_second": batch / median,
            "compile_seconds": first_run,
        }  # fmt: skip
        if torch.cuda.is_available():
            found["memory_gb"] = (torch.cuda.max_memory_allocated() - others) / 1e9
        yield mode, found

    return measure


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


JOBS = {"original": measured}
