"""The ahead-of-time reports name the program before they compile it."""

import dataclasses

import jax
import pytest

from segret_jax.aot import report
from segret_jax.aot.chips import CHIPS, Topology
from segret_jax.config import Config
from segret_jax.models.families import FAMILIES


@pytest.mark.parametrize("has_formula", [True, False])
def test_a_report_says_how_operations_are_counted(mini, monkeypatch, has_formula):
    monkeypatch.setattr(report.programs, "train_step", lambda *_: None)
    monkeypatch.setattr(report, "compile_for", lambda *_, **__: {})
    if not has_formula:
        implementation = dataclasses.replace(FAMILIES["segret"].load(), costs=None)
        family = dataclasses.replace(FAMILIES["segret"], load=lambda: implementation)
        monkeypatch.setitem(FAMILIES, "segret", family)
    config = Config()
    config.data.crop = (32, 32)
    found = report.train_report(config, Topology("v5e:1x1", CHIPS["v5e"], jax.devices()[:1]))
    assert found["flops_by"] == ("formula" if has_formula else "XLA")


@pytest.mark.parametrize(
    ("report_of", "program"),
    [
        (report.train_report, "train step (global batch 16 of 32x32)"),
        (report.evaluation_report, "evaluation (1 image of 32x64 per chip)"),
    ],
)
def test_a_compilation_is_announced(mini, monkeypatch, capsys, report_of, program):
    def compile_for(*_: object, **__: object) -> dict:
        assert capsys.readouterr().err == f"compiling the {program}, which takes minutes\n"
        return {}

    for name in ("train_step", "evaluation"):
        monkeypatch.setattr(report.programs, name, lambda *_: None)
    monkeypatch.setattr(report, "compile_for", compile_for)
    config = Config()
    config.data.crop, config.eval.resize_target = (32, 32), (64, 32)
    report_of(config, Topology("v5e:1x1", CHIPS["v5e"], jax.devices()[:1]))
