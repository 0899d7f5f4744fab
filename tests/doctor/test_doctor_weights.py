"""The label doctor's class weights can be pasted behind the command of training."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.cli import arguments as cli
from segret_jax.cli import data_check
from segret_jax.config import Config
from segret_jax.data.datasets import get_dataset
from segret_jax.doctor import check as doctor
from segret_jax.doctor.findings import class_weights, weights_setting
from segret_jax.training.losses import check_class_weights


@pytest.mark.parametrize("num_classes", [1, 2, 150])
def test_the_weights_argument_is_one_shell_word_and_sets_them(num_classes: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 10**9, num_classes)
    line = weights_setting(pixels)
    assert shlex.split(line) == [line]
    config = cli.apply_overrides(Config(), [line])
    np.testing.assert_allclose(config.train.class_weights, class_weights(pixels), atol=5e-4)
    check_class_weights(config.train, num_classes)


def test_the_command_prints_the_weights_argument_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for folder, ending, kind in (("images", "jpg", "RGB"), ("annotations", "png", "L")):
        path = tmp_path / folder / "training" / f"a.{ending}"
        path.parent.mkdir(parents=True)
        picture = Image.new(kind, (6, 4), 3 if kind == "L" else "red")
        picture.paste(5 if kind == "L" else "blue", (0, 0, 2, 2))
        picture.save(path)
    report = tmp_path / "report"
    data_check.main([str(tmp_path), "--dataset=ade20k", "--workers=1", f"--report={report}"])
    scan = doctor.check(get_dataset("ade20k"), tmp_path, split="training", workers=1)
    line = weights_setting(scan.scans["training"].pixels)
    assert line in capsys.readouterr().out.splitlines()
    assert f"<pre>{line}</pre>" in (report / "index.html").read_text(encoding="utf-8")
