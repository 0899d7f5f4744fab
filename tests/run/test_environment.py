"""Variables under which a run would fail are dropped or refused before it starts."""

import os
import sys

import jax
import pytest

from segret_jax.errors import InputError
from segret_jax.run import compilation, environment

HARMFUL = [
    ("JAX_ENABLE_X64", "1"),
    ("JAX_ENABLE_X64", "True"),
    ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
    ("JAX_TRANSFER_GUARD", "disallow"),
    ("JAX_DISABLE_JIT", "1"),
]


@pytest.fixture
def before_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jax")


@pytest.mark.parametrize(("name", "value"), HARMFUL)
def test_a_variable_that_would_end_a_run_is_dropped_and_named(
    name, value, before_jax, monkeypatch, capsys
):
    monkeypatch.setenv(name, value)
    environment.drop_unsafe_settings()
    assert name not in os.environ
    assert capsys.readouterr().err.startswith(f"{name}={value} is ignored: ")


@pytest.mark.parametrize(("name", "value"), HARMFUL)
def test_after_jax_was_imported_it_is_refused(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name}={value} is set, .*: unset {name}$"):
        environment.drop_unsafe_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_ENABLE_X64", "0"), ("JAX_TRANSFER_GUARD", "log"), ("JAX_NUMPY_RANK_PROMOTION", "raise")],
)
def test_harmless_values_stay(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    environment.drop_unsafe_settings()
    assert os.environ[name] == value
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [RuntimeError("Unknown backend: 'tpu'\nmore"), AssertionError()])
def test_missing_devices_are_reported_in_one_line(error, monkeypatch):
    def devices() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(InputError, match="JAX finds no device for JAX_PLATFORMS=") as told:
        compilation.use_cache()
    assert "\n" not in str(told.value)
