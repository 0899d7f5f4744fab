"""Settings of every test: exact products, two virtual devices, one compile cache, a small model."""

import os
import tempfile
from collections.abc import Iterator

import jax
import pytest

from segret_jax.models import rmt

# Runs that start anew, in this process or as train.py in their own, compile the same steps: once
# is enough.
CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="segret_jax_tests_")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_default_matmul_precision", "highest")

MINI = rmt.Variant(
    widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), heads=(2, 2, 2, 2),
    decay_spans=(4.0, 4.0, 6.0, 6.0), ffn_ratios=(2, 2, 2, 2),
    decomposed=(True, True, False, False),
    layer_scale=(False, False, False, True), drop_path=0.1, decoder_channels=16,
)  # fmt: skip


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> Iterator[rmt.Variant]:
    """Make `tiny` a model of 0.1 M parameters: every kind of layer, compiled in seconds."""
    monkeypatch.setitem(rmt.VARIANTS, "tiny", MINI)
    jax.config.update("jax_disable_most_optimizations", True)  # a few steps: compile fast
    yield MINI
    jax.config.update("jax_disable_most_optimizations", False)
