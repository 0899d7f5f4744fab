"""The scripts that prepare a GPU machine without a network."""

import runpy
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def test_every_wheel_that_is_downloaded_has_a_pinned_version():
    script = runpy.run_path(str(ROOT / "scripts/gpu_wheels.py"))
    pins = script["pinned"]()
    assert set(script["LACKED"]) <= pins.keys()
    assert pins["flax"].startswith("flax==")
    with pytest.raises(SystemExit, match="no-such-package: not in requirements"):
        script["main"](["no-such-package"])


def test_wheels_of_earlier_pins_are_removed(tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "scripts/gpu_wheels.py"))
    monkeypatch.setitem(script["main"].__globals__, "subprocess", mock.MagicMock())
    monkeypatch.setitem(script["main"].__globals__, "report", lambda wheels: "")
    older = ("tensorboardx-2.6.4-py3-none-any.whl", "orbax_checkpoint-0.1.0-py3-none-any.whl")
    for name in (*older, "other-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    script["main"](["--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["other-1.0-py3-none-any.whl"]


def test_the_sum_of_what_travels_is_judged(tmp_path):
    report = runpy.run_path(str(ROOT / "scripts/gpu_wheels.py"))["report"]
    (tmp_path / "a.whl").write_bytes(bytes(2**20))
    assert "wheels 1.0 MiB" in report(tmp_path)
    with (tmp_path / "b.whl").open("wb") as file:
        file.truncate(2**26)
    assert "MORE THAN 60 MiB" in report(tmp_path)


def test_the_small_camvid_has_the_same_labels_and_is_read_as_camvid(tmp_path):
    rng = np.random.default_rng(0)
    labels = {}
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (tmp_path / "whole" / kind / split).mkdir(parents=True)
        for i in range(2):
            label = rng.integers(0, 11, (36, 48)).astype(np.uint8)
            label[0, 0] = 255
            labels[split, i] = label
            image = rng.integers(0, 256, (36, 48, 3)).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"whole/images/{split}/{i}.jpg")
            Image.fromarray(label).save(tmp_path / f"whole/annotations/{split}/{i}.png")
    main = runpy.run_path(str(ROOT / "scripts/small_camvid.py"))["main"]
    main([str(tmp_path / "whole"), "--out", str(tmp_path / "small")])
    for (split, i), label in labels.items():
        copy = np.asarray(Image.open(tmp_path / f"small/annotations/{split}/{i}.png"))
        np.testing.assert_array_equal(copy, label)
        image = np.asarray(Image.open(tmp_path / f"small/images/{split}/{i}.jpg"))
        assert image.shape == (36, 48, 3)
