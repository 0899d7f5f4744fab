"""The benchmarks in small: they time what training runs."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import data, machine, operations
from segret_jax.errors import InputError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, case in data.CASES.items():
        monkeypatch.setitem(data.CASES, name, replace(case, size=(40, 60)))


@pytest.mark.parametrize("name", data.CASES)
def test_the_stages_make_up_the_whole(small, capsys, name):
    data.main(["--case", name, "--photos", "2", "--batches", "1", "--rounds", "1"])
    text = capsys.readouterr().out
    table = dict(re.findall(r"^\| ([a-z ,]+) \| ([\d.]+) \|", text, re.MULTILINE))
    whole = float(table.pop("whole"))
    assert list(table) == [*data.STAGES, data.REST]
    assert sum(map(float, table.values())) == pytest.approx(whole, abs=0.06)
    rate = int(re.search(rf"## {name}: (\d+) images/s", text)[1])
    assert rate == pytest.approx(1000 / whole, abs=1 + 1e-4 * rate**2)
    assert f"    python -m benchmarks.data --case {name} --photos 2" in text


def test_every_stage_is_timed_as_often_as_it_runs(small, monkeypatch):
    calls: Counter[str] = Counter()

    def count(function, stage, seconds):
        return lambda *args, **kwargs: calls.update([stage]) or function(*args, **kwargs)

    monkeypatch.setattr(data, "with_clock", count)
    case = data.CASES["ade20k"]
    data.measure(data.Photographs(case, 2, None), case.config, num_batches=1, num_rounds=1)
    assert calls == dict.fromkeys(data.STAGES, 2 * case.config.train.batch_size)


def test_photographs_of_a_folder_take_the_place_of_the_scenes(tmp_path: Path):
    case = replace(data.CASES["cityscapes"], size=(40, 60))
    with pytest.raises(InputError, match=f"no photograph .* below --images {tmp_path}"):
        data.Photographs(case, 1, tmp_path)
    Image.fromarray(np.full((9, 7, 3), (200, 100, 50), np.uint8)).save(tmp_path / "a.png")
    source = data.Photographs(case, 2, tmp_path)
    for index in (0, 1, 2):
        assert np.unique(source[index]["image"].reshape(-1, 3), axis=0).tolist() == [[200, 100, 50]]
        assert source[index]["label"].shape == (40, 60)
    scene = data.Photographs(case, 1, None)[0]
    np.testing.assert_array_equal(scene["label"], source[0]["label"])


def test_each_operation_is_timed_over_its_largest_floor(capsys, monkeypatch):
    rates = {"bytes": 1e9, "mult_adds": 1e9, "exponentials": 1e9}
    monkeypatch.setattr(operations, "rates", lambda dtype: rates)
    cases = list(operations.cases("tiny", (224, 224), 1, "float32"))
    assert len(cases) == 7
    monkeypatch.setattr(operations, "cases", lambda *args: cases[2:4])  # those of stage 2
    operations.main(["--size", "224x224", "--repeats", "1"])
    _, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(lines) == 2 * 2
    forward, both = (line for line in lines if line["operation"] == "selective scan, stage 2")
    # 28×28 tokens: 64 channels in and out, four times 4 + 2 projections; four scans' weights.
    size = 4 * (28 * 28 * (2 * 64 + 24) + 4 * 64 * (4 + 3))
    assert forward["bytes_floor_ms"] == pytest.approx(size / 1e6, abs=1e-3)
    assert both["bytes_floor_ms"] == pytest.approx(2 * size / 1e6, abs=1e-3)
    for line in lines:
        floors = [value for key, value in line.items() if key.endswith("_floor_ms")]
        assert line["over_largest_floor"] == pytest.approx(
            line["ms"] / max(floors), rel=0.1, abs=0.01
        )


def test_on_a_gpu_the_time_is_that_of_the_kernels(monkeypatch):
    parts = {"other": 3e-3, "scan": 1e-3}
    monkeypatch.setattr(operations.trace, "profile", lambda run, hlo: SimpleNamespace(parts=parts))
    case = operations.attention("tiny", 3, (224, 224), 1, "float32")
    limits = {"bytes": 1e6 * case.bytes(backward=True), "mult_adds": 1e18, "exponentials": 1e18}
    run = operations.compiled(case, backward=True)
    found = operations.measure(case, run, limits, backward=True, repeats=1)
    assert (found["kernels_ms"], found["bytes_floor_ms"]) == (4.0, 0.001)
    assert found["over_largest_floor"] == 4000


def test_the_rate_of_exponentials_counts_each(monkeypatch):
    monkeypatch.setattr(machine, "EXPONENTIALS", 64 * 2**10)
    monkeypatch.setattr(machine, "median_seconds", lambda run, repeats: float(run()) and 0.5)
    assert machine.peak_exponentials() == 2 * machine.TERMS * 2**10
