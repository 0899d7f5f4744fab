"""The ahead-of-time report: its input, its text, and the TPU compiler where it is installed."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from segret_jax.aot import programs, report
from segret_jax.aot.chips import CHIPS, Topology, parse, topology
from segret_jax.aot.report import bound, evaluation_report, to_text, train_report
from segret_jax.config import Config, choose_family
from segret_jax.errors import InputError
from segret_jax.models.factory import abstract
from segret_jax.models.families import FAMILIES

ROOT = Path(__file__).parents[2]
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.fixture
def here(mini) -> Topology:
    """This machine's devices as if they were two chips of a v5e."""
    return Topology("v5e:1x2", CHIPS["v5e"], jax.devices())


def config_of(batch_size: int = 4) -> Config:
    config = Config()
    config.data.crop, config.eval.resize_target = (32, 32), (64, 32)
    config.train.batch_size = batch_size
    return config


def test_topology_names_are_checked():
    assert parse("v5e:4x4") is CHIPS["v5e"]
    for name, remedy in (
        ("v5e:16", "v5e:4x4"), ("v4:4x4", "v4:2x2x4"), ("v5e", "v5e:4x4"), ("v5e:0x4", "v5e:4x4"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"write it like {remedy}"):
            parse(name)
    with pytest.raises(InputError, match="unknown kind of chip 'v7'"):
        parse("v7:4x4")


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is there")
def test_topology_without_its_compiler_is_rejected():
    with pytest.raises(InputError, match=r"Is the compiler installed \(libtpu, by pip install"):
        topology("v5e:4x4")


def test_reports_of_programs_compiled_for_these_devices(here):
    report = train_report(config_of(), here)
    assert report["chips"] == 2
    assert report["fits"]
    memory = report["memory"]
    assert memory["total"] == sum(memory[k] for k in memory if k != "total")
    # On each chip parameters and two moments, batch statistics, counters, and half of the batch.
    _, params, batch_stats = abstract(config_of().model, 8)
    weights, statistics = (sum(x.size for x in jax.tree.leaves(t)) for t in (params, batch_stats))
    batch = 2 * 32 * 32 * (3 * 4 + 1) + 2 * 4
    assert memory["arguments"] == 4 * (3 * weights + statistics) + batch + 5 * 4
    assert report["collectives"]["all-reduce"]["bytes"] > 4 * weights  # the gradients
    assert report["flops_by_xla"] > 0
    text = to_text(report)
    assert "segret_tiny: train step on v5e:1x2 (2 chips): fits" in text
    assert "global batch 4 of 32x32, float32" in text
    xla = f"{report['flops_by_xla'] / 1e12:.3f} by XLA, loops counted once"
    assert f"{report['flops'] / 1e12:.3f} TFLOP by formula ({xla}), " in text
    text = to_text(report | {"flops_by": "XLA"})
    assert f"{report['flops'] / 1e12:.3f} TFLOP by XLA, loops counted once, " in text
    assert "no faster than" in text
    assert f"a global batch of about {report['expected_batch']} should fit" in text

    evaluated = evaluation_report(config_of(), here)
    assert evaluated["shape"].startswith("1 image of 32x64 per chip")
    assert evaluated["collectives"] == {}


@pytest.mark.parametrize(("min_batch", "advised"), [(1, 3), (2, 0)])
def test_no_batch_is_advised_that_the_family_does_not_take(here, monkeypatch, min_batch, advised):
    """Two images of three parts do not fit, one does."""
    family = dataclasses.replace(FAMILIES["segret"], min_batch=min_batch)
    monkeypatch.setitem(FAMILIES, "segret", family)
    measured = {
        "bound": {}, "chips": 1, "accumulate": 3, "batch_size": 6, "limit": 8,
        "memory": {"temporary": 10, "total": 12},
    }  # fmt: skip
    monkeypatch.setattr(report, "_report", lambda *_: measured)
    config = config_of(6)
    config.train.accumulate = 3
    assert train_report(config, here)["expected_batch"] == advised


def test_the_largest_input_is_one_that_the_family_takes(monkeypatch):
    assert programs.largest_input(config_of()) == (32, 64)
    family = dataclasses.replace(FAMILIES["segret"], min_side=33)
    monkeypatch.setitem(FAMILIES, "segret", family)
    assert programs.largest_input(config_of()) == (64, 64)


def test_report_says_that_a_program_does_not_fit(here, monkeypatch):
    class Refused:
        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
                "space hbm. Used 80.36G of 15.75G hbm. Exceeded hbm capacity by 64.61G."
            )

    monkeypatch.setattr(programs, "train_step", lambda *args: Refused())
    report = train_report(config_of(), here)
    assert not report["fits"]
    assert "DOES NOT FIT, 86.29 GB of 16.91 GB per chip" in to_text(report)


def test_the_bound_is_of_the_slowest_part():
    report = {
        "chips": 2, "flops": 197e12, "bytes": 819e9 * 3,
        "collectives": {"all-reduce": {"count": 1, "bytes": 100e9}},
    }  # fmt: skip
    assert bound(report, CHIPS["v5e"]) == {"compute": 1.0, "links": 1.0, "memory": 3.0}


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu, an optional extra")
def test_the_compiler_for_a_tpu_slice(tmp_path):
    out = tmp_path / "reports.json"
    done = subprocess.run(
        [sys.executable, "-m", "segret_jax", "aot", "--config", "configs/ade_tiny.py",
         "--topology", "v5e:2x2", "--out", str(out), "--config.data.crop=(64,64)",
         "--config.train.batch_size=4", "--config.eval.resize_target=(64,64)"],
        cwd=ROOT, env=os.environ, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    train, evaluated = json.loads(out.read_text())
    assert train["chips"] == evaluated["chips"] == 4
    assert train["collectives"]["all-reduce"]["bytes"] > 4 * 13e6
    assert evaluated["collectives"] == {}


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu, an optional extra")
def test_the_compiler_takes_the_other_family():
    """The evaluation: a train step takes minutes, see `benchmarks/results/aot`."""
    config = config_of()
    choose_family(config.model, "segman")
    config.data.crop = config.eval.resize_target = (224, 224)
    evaluated = evaluation_report(config, topology("v5e:2x2"))
    assert evaluated["fits"]
    assert evaluated["collectives"] == {}
    assert evaluated["memory"]["arguments"] > 4 * abstract(config.model, 8).num_params
