"""Real traces of a tiny function."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from segret_jax.cli.train import parse_steps
from segret_jax.errors import InputError
from segret_jax.run.profiler import Profiler


@pytest.fixture
def double() -> Iterator[jax.stages.Wrapped]:
    yield jax.jit(lambda x: 2 * x)
    with suppress(RuntimeError):  # a test that failed must not fail the next one
        jax.profiler.stop_trace()


def traces(folder: Path) -> list[Path]:
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_two_numbers_are_read():
    assert parse_steps("10:14", 12) == range(10, 15)
    assert parse_steps("3:3", 3) == range(3, 4)


@pytest.mark.parametrize("text", ["", "5", "0:3", "4:3", "-1:3", "1:2:3", "a:b", "1.5:2", "1: 2"])
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="should be START:STOP") as error:
        parse_steps(text, 10)
    assert repr(text) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_steps_beyond_the_run_are_refused():
    with pytest.raises(InputError, match=r"'11:12': the run has only 10 \(train\.steps\)"):
        parse_steps("11:12", 10)


def test_the_steps_from_start_to_stop_are_traced(tmp_path, double):
    x, said = jnp.ones(4), []
    with Profiler(tmp_path, range(2, 4), said.append) as profiler:
        for step in range(1, 6):
            profiler.before(step)
            x = double(x)
            profiler.after(step, {"loss": x})
            assert bool(traces(tmp_path)) == bool(said) == (step >= 3)
    assert len(said) == 1
    assert f"xprof --logdir {tmp_path}" in said[0]
    assert "tensorboard-plugin-profile" in said[0]
    (trace,) = traces(tmp_path)
    assert b"jit" in trace.read_bytes()


def test_a_run_that_ends_early_keeps_its_trace(tmp_path, double):
    said = []
    with Profiler(tmp_path, range(2, 101), said.append) as profiler:
        profiler.before(5)  # a run that resumed after step 2
        double(jnp.ones(4))
        profiler.after(5, None)
        assert not said
    assert str(tmp_path) in said[0]
    assert len(traces(tmp_path)) == 1


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, double, monkeypatch):
    def full() -> None:
        raise RuntimeError("No space left on device")

    said = []
    with Profiler(tmp_path, range(1, 2), said.append) as profiler:
        profiler.before(1)
        with monkeypatch.context() as patch:
            patch.setattr(jax.profiler, "stop_trace", full)
            profiler.after(1, None)
    assert len(said) == 1
    assert "No space left on device; training continues" in said[0]
    jax.profiler.stop_trace()


def test_without_steps_nothing_happens(tmp_path):
    with Profiler(tmp_path / "profile", (), pytest.fail) as profiler:
        profiler.before(1)
        profiler.after(1, None)
    assert not list(tmp_path.iterdir())
