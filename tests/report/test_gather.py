"""What is read of a run: all of it, or the rest with a note on what is damaged or missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from segret_jax.errors import InputError
from segret_jax.report.gather import gather, sessions, values_of
from tests.report.made_up import write_log, write_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def test_a_finished_run_is_read_without_notes(folder: Path):
    run = gather(folder)
    assert (run.name, run.status, run.notes) == ("run", "finished", [])
    assert run.config["optim.learning_rate"] == 2e-3
    assert [one["step"] for one in run.validation] == [20, 40]
    assert len(run.training) == 20
    assert run.result is not None
    assert run.counts is not None
    assert run.counts.sum() == run.result.images.label.sum()
    assert {image.name for image in run.images} == set(run.result.names)


@pytest.mark.parametrize(
    "name",
    ["status", "config.json", "run.json", "metrics.json", "per_image.npz", "confusion.csv",
     "gallery.npz"],
)  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"\x00\xff damaged {"])
def test_a_damaged_file_is_left_out_with_a_note(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    (note,) = gather(folder).notes
    assert name in note
    assert "left out of the report" in note
    assert "\n" not in note


def test_lines_that_are_cut_off_are_left_out_with_a_note(folder: Path):
    log = folder / "metrics.jsonl"
    text = log.read_text()
    log.write_text(
        text + "[1]\n" + '{"kind": "train", "step": 1e999}\n' + text.splitlines()[0][:40]
    )
    run = gather(folder)
    assert len(run.training) == 20
    (note,) = run.notes
    assert "metrics.jsonl: 3 lines left out, cut off or no record" in note


def test_a_run_that_has_just_begun_has_only_its_log(tmp_path: Path):
    write_log(tmp_path, evaluations=())
    run = gather(tmp_path)
    assert (run.result, run.counts, run.images, run.notes) == (None, None, [], [])
    assert len(run.training) == 20


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_run_is_rejected(tmp_path: Path, make: bool):
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    message = r"empty holds no run \(config.json, " if make else r"empty is no folder: give a run"
    with pytest.raises(InputError, match=message):
        gather(folder)


def test_time_is_that_of_all_sessions(folder: Path):
    assert sessions(gather(folder)) == [(20, 51.0), (40, 51.0)]


def test_values_that_are_no_finite_numbers_are_left_out():
    values = (0.5, None, "x", float("nan"), True, 2)
    records = [{"step": i, "loss": value} for i, value in enumerate(values)]
    assert values_of(records, "loss") == ([0, 4, 5], [0.5, 1.0, 2.0])
    assert values_of(json.loads("[]"), "loss") == ([], [])


def test_a_gallery_of_other_classes_is_not_shown(folder: Path):
    other = write_run(folder.parent / "other", num_classes=12)
    shutil.copy(other / "gallery.npz", folder)
    run = gather(folder)
    assert run.images == []
    assert run.colors is None
    np.testing.assert_array_equal(run.counts, gather(folder).counts)
