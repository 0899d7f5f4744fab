"""A run of the small model in a process of its own, for tests that start, stop and kill it.

python -m tests.integration.runner WORKDIR --steps 6 --processes 0/2@localhost:9999 …
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from segret_jax.cli import eval, program
from segret_jax.config import Config, DataConfig, EvalConfig, OptimConfig, TrainConfig
from segret_jax.models.segret import variants
from segret_jax.parallel import processes
from segret_jax.run.logger import RunLogger
from segret_jax.training import loop
from tests.conftest import MINI  # which asks for two devices, too, and for fast compilation

ROOT = Path(__file__).parents[2]


def config_of(steps: int) -> Config:
    return Config(
        data=DataConfig(
            crop=(32, 32), synthetic_size=(32, 32), resize_base=(32, 32),
            synthetic_train=24, synthetic_validation=6,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=3),
        train=TrainConfig(steps=steps, batch_size=8, log_every=1, eval_every=1000),
        eval=EvalConfig(resize_target=(32, 32), pictures=2),
    )  # fmt: skip


def start(workdir: Path, *args: Any, output: Any = subprocess.PIPE) -> subprocess.Popen:
    """Start this module in another process; its output goes to a file, or is its `stdout`."""
    command = [sys.executable, "-m", "tests.integration.runner", str(workdir), *map(str, args)]
    cache = str(workdir.parent / "cache")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT
    )


def finish(running: Sequence[subprocess.Popen], *, timeout: float = 280) -> list[str]:
    """Wait for processes and return what they printed; all must end well."""
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(
        x[-3000:] for x in printed
    )
    return printed


def after_each_step(*, pause: float, stop_at: int) -> None:
    """Pause after each step; send SIGTERM to this process once `stop_at` steps are made."""
    original, calls = RunLogger.advance, []

    def tick(logger: RunLogger) -> None:
        original(logger)
        calls.append(1)
        time.sleep(pause)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    RunLogger.advance = tick  # type: ignore[method-assign]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--processes")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--eval-every", type=int, default=1000)
    parser.add_argument("--stop-at", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--evaluate", action="store_true", help="run eval.py instead")
    args = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", args.devices)
    variants.VARIANTS["tiny"] = MINI
    if args.evaluate:
        alone = [] if args.processes is None else ["--processes", args.processes]
        eval.main(["--workdir", str(args.workdir), *alone])
        return
    processes.start(args.processes)
    config = config_of(args.steps)
    config.mesh.fsdp, config.data.workers = args.fsdp, args.workers
    config.train.save_every, config.train.eval_every = args.save_every, args.eval_every
    after_each_step(pause=args.pause, stop_at=args.stop_at)
    loop.train(config, args.workdir)


if __name__ == "__main__":
    program.run(main)
