"""Settings of every test: exact products, two virtual devices, one compile cache, a small model."""

import contextlib
import dataclasses
import functools
import gc
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from segret_jax.config import OptimConfig, TrainConfig
from segret_jax.models.segman import variants as segman_variants
from segret_jax.models.segret import variants
from segret_jax.settings import rules
from segret_jax.training import loop, step
from tests.fast_compile import compile_fast

# Runs that start anew, in this process or as train.py in their own, compile the same steps: once
# is enough.
CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="segret_jax_tests_")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

jax.config.update("jax_num_cpu_devices", 2)
compile_fast()
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 20, 100)  # a tenth of the time: tracing makes much that stays

# Before a test replaces Predictor, which their annotations name (CI checks them).
for _module in ("evaluation.evaluate", "evaluation.results", "prediction.batch"):
    importlib.import_module(f"segret_jax.{_module}")

MINI = variants.Variant(
    widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), heads=(2, 2, 2, 2),
    decay_spans=(4.0, 4.0, 6.0, 6.0), ffn_ratios=(2, 2, 2, 2),
    decomposed=(True, True, False, False),
    layer_scale=(False, False, False, True), drop_path=0.1, decoder_channels=16,
)  # fmt: skip
SEGMAN_MINI = segman_variants.Variant(
    widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), windows=(5, 3, 3, 3),
    ffn_ratios=(2.0, 2.0, 2.0, 2.0), layer_scale=True, drop_path=0.1,
    decoder_channels=16, projection_channels=8,
)  # fmt: skip


# A file of a minute or more that came last would leave the other core idle.
FIRST = (
    "integration/test_processes.py", "test_memory.py", "integration/test_kill.py",
    "training/test_resume.py", "training/test_mesh.py", "parity/test_training.py",
    "parity/test_segret.py", "parity/test_segman.py", "replay/test_replay.py",
    "checkpoint/test_checkpoint.py", "models/test_export.py", "models/test_segret.py",
)  # fmt: skip

# Settings of training that its step does not have.
OF_THE_LOOP = {"steps", *(k for k, rule in rules(TrainConfig()).items() if not rule.compiled)}


def slow(*cases: Any) -> list[Any]:
    """Mark cases of a parametrized test as slow."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@contextlib.contextmanager
def small_models() -> Iterator[variants.Variant]:
    """Make `tiny` a model of 0.1 M parameters: every kind of layer, compiled in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(variants.VARIANTS, "tiny", MINI)
        patch.setitem(segman_variants.VARIANTS, "tiny", SEGMAN_MINI)
        yield MINI


@pytest.fixture
def mini() -> Iterator[variants.Variant]:
    """Make `tiny` a small model for one test."""
    with small_models() as variant:
        yield variant


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Compile as users do, for tests of speed, of memory or of what XLA makes of a program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; xdist is told to leave the order alone."""
    items.sort(key=lambda item: not str(item.path).endswith(FIRST))


def pytest_collection_finish() -> None:
    """Leave out of garbage collection what stays until the end: a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _steps_compiled_once() -> Iterator[None]:
    """Let runs of one model, config and mesh share a compiled step: 1.5 s of a run, not 6."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_optimizer", "make_train_step"):
            patch.setattr(loop, name, _once_per_setting(getattr(loop, name)))
        patch.setattr(step, "trim_host_memory", lambda: None)  # seconds, with what all tests keep
        yield


def _once_per_setting(make: Callable) -> Callable:
    made: dict[Any, Any] = {}

    def key(value: Any) -> Any:
        if not isinstance(value, OptimConfig | TrainConfig):
            return value
        content = dataclasses.asdict(value)  # a copy: tests change configs
        return tuple(item for item in content.items() if item[0] not in OF_THE_LOOP)

    @functools.wraps(make)
    def once(*args: Any, **options: Any) -> Any:
        setting = (*map(key, args), *((name, key(value)) for name, value in options.items()))
        if setting not in made:
            made[setting] = make(*args, **options)
        return made[setting]

    return once
