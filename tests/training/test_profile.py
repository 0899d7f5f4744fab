"""Real traces of a tiny function."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from segret_jax.errors import InputError
from segret_jax.training.profile import Profiler, Steps, parse


@pytest.fixture
def double() -> Iterator[jax.stages.Wrapped]:
    yield jax.jit(lambda x: 2 * x)
    with suppress(RuntimeError):  # a test that failed must not fail the next one
        jax.profiler.stop_trace()


def traces(folder: Path) -> list[Path]:
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_two_numbers_are_read():
    assert parse("10:14") == Steps(10, 14)
    assert parse("3:3") == Steps(3, 3)


@pytest.mark.parametrize("text", ["", "5", "0:3", "4:3", "-1:3", "1:2:3", "a:b", "1.5:2", "1: 2"])
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="should be START:STOP") as error:
        parse(text)
    assert repr(text) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_steps_from_start_to_stop_are_traced(tmp_path, double):
    profiler, x, messages = Profiler(tmp_path, parse("2:3")), jnp.ones(4), {}
    for step in range(1, 6):
        profiler.before(step)
        x = double(x)
        messages[step] = profiler.after(step, {"loss": x})
        assert bool(traces(tmp_path)) == (step >= 3)
    assert [step for step, message in messages.items() if message] == [3]
    assert f"xprof --logdir {tmp_path}" in messages[3]
    assert "tensorboard-plugin-profile" in messages[3]
    (trace,) = traces(tmp_path)
    assert b"jit" in trace.read_bytes()
    assert profiler.close() == ""


def test_a_run_that_ends_early_keeps_its_trace(tmp_path, double):
    profiler = Profiler(tmp_path, Steps(2, 100))
    profiler.before(5)  # a run that resumed after step 2
    double(jnp.ones(4))
    assert profiler.after(5, None) == ""
    assert str(tmp_path) in profiler.close()
    assert len(traces(tmp_path)) == 1


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, double, monkeypatch):
    def full() -> None:
        raise RuntimeError("No space left on device")

    profiler = Profiler(tmp_path, Steps(1, 1))
    profiler.before(1)
    with monkeypatch.context() as patch:
        patch.setattr(jax.profiler, "stop_trace", full)
        assert "No space left on device; training goes on" in profiler.after(1, None)
    assert profiler.close() == ""
    jax.profiler.stop_trace()


def test_without_steps_nothing_happens(tmp_path):
    profiler = Profiler(tmp_path / "profile", None)
    profiler.before(1)
    assert profiler.after(1, None) == profiler.close() == ""
    assert not list(tmp_path.iterdir())
