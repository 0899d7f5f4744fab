"""Comparison of two results: verdict, difference and its interval, exit status, messages."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax.cli import compare as compare_cli
from segret_jax.errors import InputError
from segret_jax.evaluation import results
from segret_jax.evaluation.pixel_counts import PixelCounts
from segret_jax.evaluation.protocol import identify

CLASSES = ("sky", "road", "car", "tree", "fence", "pole", "sign")
MUST_AGREE = {
    "dataset": "camvid", "split": "validation", "num_images": 40, "images": "a" * 64,
    "classes": "b" * 64, "labels": "c" * 64, "mode": "whole", "window": None, "scales": [1.0],
    "flip": False,
}  # fmt: skip
MAY_DIFFER = {"weights": "d" * 64, "model.dtype": "float32", "batch_size": 1}


def counts(*, found: float = 0.7, seed: int = 0, num_images: int = 40) -> PixelCounts:
    """Images of varied difficulty, the same for each `seed`, of whose labels `found` are hit."""
    rng = np.random.default_rng(seed)
    label = rng.integers(500, 1500, (num_images, len(CLASSES)))
    difficulty = rng.uniform(0.4, 1, (num_images, 1))
    intersection = (found * difficulty * label).astype(np.int64)
    return PixelCounts(intersection, label, intersection + 200)


def write(
    folder: Path,
    counted: PixelCounts,
    *,
    names: Sequence[str] = (),
    faults: Sequence[str] = (),
    may_differ: dict[str, Any] | None = None,
    **must_agree: Any,
) -> str:
    settings = MUST_AGREE | must_agree
    protocol = {
        "id": identify(settings),
        "must_agree": settings,
        "may_differ": MAY_DIFFER | (may_differ or {}),
    }
    content = {"classes": dict.fromkeys(CLASSES), "faults": list(faults)}
    names = names or [f"frame{i:02}" for i in range(len(counted.label))]
    return str(results.write(folder, content, protocol=protocol, names=names, images=counted))


def verdict(a: str, b: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit status and lines of the command."""
    status = 0
    try:
        compare_cli.main([a, b])
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, capsys.readouterr().out.splitlines()


def line(lines: list[str], start: str) -> str:
    return next(text for text in lines if text.strip().startswith(start))


def test_the_difference_has_an_interval_that_excludes_0_where_b_is_better(tmp_path, capsys):
    images = counts(), counts(found=0.72)
    a, b = (write(tmp_path / n, x) for n, x in zip("ab", images, strict=True))
    status, lines = verdict(a, b, capsys)
    iou = [x.intersection.sum(0) / x.union.sum(0) for x in images]
    mean_a, mean_b = (100 * x.mean() for x in iou)
    assert status == 0
    assert line(lines, "A mIoU").startswith(f"A mIoU  {mean_a:.2f}  [")
    assert line(lines, "B mIoU").startswith(f"B mIoU  {mean_b:.2f}  [")
    found = line(lines, "B - A")
    assert found.startswith(f"B - A   +{mean_b - mean_a:.2f}  [+")
    assert found.endswith("paired; it excludes 0: B is better on images like these")
    # Unpaired, the intervals overlap: the images differ more than the results do.
    assert upper(line(lines, "A mIoU")) > lower(line(lines, "B mIoU"))
    assert "A is better" in line(verdict(b, a, capsys)[1], "B - A")


def lower(text: str) -> float:
    return float(text.split("[")[1].split(",")[0])


def upper(text: str) -> float:
    return float(text.split(", ")[1].split("]")[0])


def test_the_paired_interval_equals_a_loop(tmp_path, capsys):
    images = counts(num_images=6), counts(num_images=6, found=0.68)
    a, b = (write(tmp_path / n, x) for n, x in zip("ab", images, strict=True))
    draws = np.random.default_rng(0).integers(6, size=(1000, 6))
    mean = [[(x.intersection[d].sum(0) / x.union[d].sum(0)).mean() for d in draws] for x in images]
    low, high = np.percentile(100 * np.subtract(mean[1], mean[0]), [2.5, 97.5])
    found = line(verdict(a, b, capsys)[1], "B - A")
    assert (lower(found), upper(found)) == (round(low, 2), round(high, 2))


def test_images_are_paired_by_name_and_not_by_order(tmp_path, capsys):
    images, order = counts(), np.random.default_rng(1).permutation(40)
    a = write(tmp_path / "a", images)
    b = write(tmp_path / "b", images[order], names=[f"frame{i:02}" for i in order])
    status, lines = verdict(a, b, capsys)
    assert status == 0
    assert line(lines, "B - A").endswith("[+0.00, +0.00], paired; it includes 0: these images do "
                                         "not tell A from B")  # fmt: skip
    assert "No class changed." in lines


def test_the_five_classes_that_changed_most(tmp_path, capsys):
    before = counts()
    gain = np.array([0, 90, -10, 30, 50, -70, 0])
    after = PixelCounts(before.intersection + gain, before.label, before.pred + gain)
    a, b = write(tmp_path / "a", before), write(tmp_path / "b", after)
    _, lines = verdict(a, b, capsys)
    shown = lines[lines.index("Classes that changed most, IoU:") + 1 :]
    assert [text.split()[0] for text in shown] == ["road", "pole", "fence", "tree", "car"]
    iou = [100 * x.intersection.sum(0)[5] / x.union.sum(0)[5] for x in (before, after)]
    assert shown[1].split()[1:] == [
        f"{iou[0]:.2f}",
        "->",
        f"{iou[1]:.2f}",
        f"{iou[1] - iou[0]:+.2f}",
    ]


def test_a_class_that_never_occurs_is_no_change(tmp_path, capsys):
    images = counts()
    for pixels in (images.intersection, images.label, images.pred):
        pixels[:, 3] = 0
    better = PixelCounts(images.intersection, images.label, images.pred - 10 * (images.pred > 0))
    a, b = write(tmp_path / "a", images), write(tmp_path / "b", better)
    _, lines = verdict(a, b, capsys)
    assert "tree" not in " ".join(lines)
    assert "nan" not in " ".join(lines)


@pytest.mark.parametrize(
    ("setting", "shown", "reason"),
    [
        ({"scales": [0.5, 1.0]}, "scales: A (1.0), B (0.5, 1.0)", "averaging over scales raises"),
        ({"flip": True}, "flip: A False, B True", "mirrored image"),
        ({"mode": "slide", "window": [9, 9]}, "mode: A whole, B slide", "another context"),
        ({"classes": "e" * 64}, "classes: A bbbbbbbbbbbb, B eeeeeeeeeeee", "another label table"),
        ({"split": "training"}, "split: A validation, B training", "the training images"),
        ({"min_side": 224}, "min_side: A None, B 224", "stretched to this length"),
        ({"tta": 1}, "tta: A None, B 1", "a setting that this version does not know"),
    ],
)
def test_differing_protocols_exit_with_1_and_a_reason(tmp_path, capsys, setting, shown, reason):
    a, b = write(tmp_path / "a", counts()), write(tmp_path / "b", counts(), **setting)
    status, lines = verdict(a, b, capsys)
    assert status == 1
    start = lines.index("NOT COMPARABLE, since these differ:")
    assert lines[start + 1].strip() == shown
    assert reason in lines[start + 2]
    assert len(lines) == start + 3  # and no difference


def test_settings_that_may_differ_are_listed(tmp_path, capsys):
    a = write(tmp_path / "a", counts())
    b = write(tmp_path / "b", counts(), may_differ={"model.dtype": "bfloat16", "batch_size": 4})
    status, lines = verdict(a, b, capsys)
    assert status == 0
    start = lines.index("Differs, allowed:")
    assert [text.strip() for text in lines[start + 1 : start + 3]] == [
        "model.dtype: A float32, B bfloat16", "batch_size: A 1, B 4",
    ]  # fmt: skip
    assert lines[start + 3] == ""


def test_incomplete_result_is_not_comparable_and_names_missing_images(tmp_path, capsys):
    a = write(tmp_path / "a", counts())
    b = write(
        tmp_path / "b", counts()[np.arange(38)], images="f" * 64, num_images=38, labels="f" * 64,
        faults=["/data/frame38.jpg: cannot be read", "/data/frame39.jpg: cannot be read"],
    )  # fmt: skip
    status, lines = verdict(a, b, capsys)
    assert status == 1
    assert line(lines, "B is incomplete") == (
        "  B is incomplete: 2 images were left out, such as /data/frame38.jpg: cannot be read"
    )
    assert not any("labels" in text for text in lines)  # they differ since the images do
    assert line(lines, "2 images only in A").strip() == "2 images only in A, such as frame38"


def test_the_first_image_with_other_labels_is_named(tmp_path, capsys):
    images = counts()
    label = images.label.copy()
    label[[7, 9], 2] += 1
    a = write(tmp_path / "a", images)
    b = write(tmp_path / "b", PixelCounts(images.intersection, label, images.pred), labels="f" * 64)
    status, lines = verdict(a, b, capsys)
    assert status == 1
    assert line(lines, "the first image").endswith("labels differ: frame07")


def test_command_exits_with_its_status_and_prints_errors_in_one_line(tmp_path):
    a, b = write(tmp_path / "a", counts()), write(tmp_path / "b", counts(), flip=True)
    for other, status in ((a, 0), (b, 1), (str(tmp_path / "none.json"), 2)):
        command = [sys.executable, "-m", "segret_jax", "compare", a, other]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert bool(done.stdout) == (status < 2)
        assert done.stderr.startswith("error: ") == (status == 2)
        assert len(done.stderr.splitlines()) == (status == 2)


@pytest.mark.parametrize("arguments", [["a.json"], ["a.json", "b.json", "--config.eval.flip=1"]])
def test_arguments_are_two_files(arguments):
    with pytest.raises(InputError, match="see --help"):
        compare_cli.main(arguments)
