"""The ahead-of-time commands say what they compile before they wait for it."""

import jax
import pytest

from segret_jax.aot import fitting
from segret_jax.aot.chips import CHIPS, Topology
from segret_jax.config import Config


@pytest.mark.parametrize(
    ("receipt_of", "program"),
    [
        (fitting.train_report, "the train step for a global batch of 16"),
        (fitting.evaluation_report, "the evaluation network for 32x64"),
    ],
)
def test_a_compilation_is_announced(mini, monkeypatch, capsys, receipt_of, program):
    def compile_for(*_: object, **__: object) -> dict:
        assert capsys.readouterr().err == f"compiling {program}, which takes minutes\n"
        return {}

    for name in ("train_step", "evaluation"):
        monkeypatch.setattr(fitting.programs, name, lambda *_: None)
    monkeypatch.setattr(fitting, "compile_for", compile_for)
    config = Config()
    config.data.crop, config.eval.resize_target = (32, 32), (64, 32)
    receipt_of(config, Topology("v5e:1x1", CHIPS["v5e"], jax.devices()[:1]))
