"""This project's jobs: what counts as right, and what a GPU cannot do."""

import threading
from types import SimpleNamespace

import jax
import pytest

from benchmarks.gpu import ours
from segret_jax.errors import InputError
from segret_jax.models.kernels import Platform
from segret_jax.run.compilation import CACHE_HIT

MISS = "/jax/compilation_cache/cache_misses"


@pytest.mark.parametrize(
    ("backend", "summary", "ok"),
    [("gpu", "12 skipped", False), ("gpu", "11 passed", True), ("cpu", "12 skipped", True)],
)  # fmt: skip
def test_gpu_tests_that_are_all_skipped_are_right_in_a_dry_run_only(
    monkeypatch, backend, summary, ok
):
    done = SimpleNamespace(stdout=f"{summary} in 1.00s\n", stderr="", returncode=0)
    monkeypatch.setattr(ours.subprocess, "run", lambda *args, **settings: done)
    monkeypatch.setattr(ours.jax, "default_backend", lambda: backend)
    ((figure, found),) = ours.pytest("tests/gpu", seconds=1)()
    assert (figure, found["ok"]) == ("pytest", ok)


def test_without_a_gpu_only_a_dry_run_starts(monkeypatch):
    monkeypatch.setattr(ours.compilation, "use_cache", lambda: None)
    monkeypatch.setattr(ours.jax.config, "update", lambda *args: None)
    monkeypatch.setattr(ours.jax, "default_backend", lambda: "cpu")
    with pytest.raises(InputError, match="--dry-run runs every job in tiny"):
        ours.start({"dry_run": False})


@pytest.mark.parametrize(("capability", "has_tf32"), [(7.5, False), (8.0, True), (None, True)])
def test_tf32_is_measured_where_the_gpu_has_it(monkeypatch, capability, has_tf32):
    monkeypatch.setattr(ours, "platform_of", lambda devices: Platform(capability=capability))
    monkeypatch.setattr(ours, "peak_flops", lambda *args, **settings: 1e12)
    monkeypatch.setattr(ours, "peak_bandwidth", lambda: 1e9)
    ((_, found),) = ours.peaks(size=8)()
    assert ("tf32_tflops" in found) == has_tf32


def test_hits_of_the_cache_are_those_of_the_thread_that_compiles():
    with ours._cache_events() as events:
        jax.monitoring.record_event(MISS)
        jax.monitoring.record_event("/jax/compilation_cache/compile_requests_use_cache")
        other = threading.Thread(target=jax.monitoring.record_event, args=(CACHE_HIT,))
        other.start()
        other.join()
        assert events == [MISS]
        jax.monitoring.record_event(CACHE_HIT)
    jax.monitoring.record_event(MISS)
    assert events == [MISS, CACHE_HIT]
