"""Compile fast rather than well: these tests run a few steps of a model of 0.1 M parameters."""

import os

import jax
import pytest

# Runs that start anew in one process (resuming) compile the same step: once is enough.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)


@pytest.fixture(autouse=True)
def _unoptimized():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
