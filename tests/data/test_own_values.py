"""Which stored values a user's own table ignores: those it lists, and 255 where it lists none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import IGNORE, UNKNOWN
from segret_jax.data.datasets import load_dataset
from segret_jax.data.shards.prepare import prepare
from segret_jax.data.shards.prepared import open_files
from segret_jax.data.sources import FolderSource
from segret_jax.doctor import check as doctor
from segret_jax.errors import InputError


def write_own(root: Path, raw_ids: list[object], label: np.ndarray, **keys: object) -> Path:
    """Write a JSON file of classes with these raw ids, and three pairs with one label."""
    for i in range(3):
        for kind, folder, suffix in (("RGB", "images", "jpg"), ("L", "annotations", "png")):
            path = root / folder / "training" / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(label) if kind == "L" else Image.new(kind, label.shape[::-1])
            picture.save(path)
    classes = [
        {"id": i, "name": f"c{i}", "color": "#010203", "raw_id": raw}
        for i, raw in enumerate(raw_ids)
    ]
    path = root / "own.json"
    path.write_text(json.dumps({"classes": classes} | keys))
    return path


MASK = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)


def test_a_mask_of_0_and_255_needs_no_more_than_its_two_classes(tmp_path: Path) -> None:
    spec = load_dataset(write_own(tmp_path, [0, 255], MASK))
    source = FolderSource(spec, tmp_path, "training")
    assert source[0]["label"].tolist() == [[0, 1, 1], [0, 0, 1]]
    assert source.layout.void == ()
    diagnosis = doctor.check(spec, tmp_path, split="training", workers=1)
    assert diagnosis.scans["training"].pixels.tolist() == [9, 9]
    assert not any("255" in finding.message for finding in diagnosis.findings)


def test_a_list_of_values_without_255_ignores_no_255(tmp_path: Path) -> None:
    for ignore in ([], [7]):
        spec = load_dataset(write_own(tmp_path, [0, 1], MASK, ignore=ignore))
        message = "annotations/training/0.png: label id 255 at pixel (y=0, x=1) is no class"
        with pytest.raises(InputError, match=re.escape(message)):
            FolderSource(spec, tmp_path, "training")[0]
        findings = doctor.check(spec, tmp_path, split="training", workers=1).findings
        assert any("outside the class table: 255;" in finding.message for finding in findings)


def test_without_a_list_255_is_ignored(tmp_path: Path) -> None:
    spec = load_dataset(write_own(tmp_path, [0], MASK))
    assert FolderSource(spec, tmp_path, "training")[0]["label"].tolist() == [
        [0, 255, 255],
        [0, 0, 255],
    ]


def test_the_doctors_advice_about_a_mask_can_be_followed(tmp_path: Path) -> None:
    one = load_dataset(write_own(tmp_path, [0, 1], MASK))
    (advice,) = [
        finding.message
        for finding in doctor.check(one, tmp_path, split="training", workers=1).findings
        if finding.severity == "error" and "255" in finding.message
    ]
    assert 'give it one in a JSON file of your own ("raw_id": 255)' in advice
    followed = load_dataset(write_own(tmp_path, [0, 255], MASK))
    findings = doctor.check(followed, tmp_path, split="training", workers=1).findings
    assert [f.severity for f in findings if "255" in f.message] == []


def test_values_with_two_meanings_are_named_only_where_both_are_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the stored values \[255\] have two meanings"):
        load_dataset(write_own(tmp_path, [0, 255], MASK, ignore=[255]))
    with pytest.raises(InputError, match=r"the stored values \[3\] have two meanings"):
        load_dataset(write_own(tmp_path, [[0, 3], [3, 255]], MASK))
    lookup = load_dataset(write_own(tmp_path, [0, [254, 255]], MASK, ignore=[9, 9])).layouts[0]
    values = {int(v): int(lookup.lookup[v]) for v in (0, 9, 253, 254, 255)}
    assert values == {0: 0, 9: IGNORE, 253: UNKNOWN, 254: 1, 255: 1}


def test_another_ignored_label_under_the_packaged_tables_key_is_refused(tmp_path: Path) -> None:
    path = write_own(tmp_path, [1], MASK, ignore_label=0)
    with pytest.raises(InputError, match=r'ignore_label is 0; write it as "ignore": \[0\]'):
        load_dataset(path)
    load_dataset(write_own(tmp_path, [1], MASK, ignore_label=255))


def test_shards_remember_whether_255_is_ignored(tmp_path: Path) -> None:
    spec = load_dataset(write_own(tmp_path, [0, 255], MASK))
    prepare(spec, tmp_path, str(tmp_path / "data"), shards=1)
    prepared = open_files(spec, tmp_path / "data", "training")
    assert prepared[2]["label"].tolist() == [[0, 1, 1], [0, 0, 1]]
    ignoring = load_dataset(write_own(tmp_path, [0, 1], MASK))
    with pytest.raises(InputError, match="prepared with another class table"):
        open_files(ignoring, tmp_path / "data", "training")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # Notepad's and PowerShell's
def test_json_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = write_own(tmp_path, [0, 255], MASK)
    path.write_text(path.read_text().replace("c1", "väg"), encoding=encoding)
    assert load_dataset(path).class_table.class_names == ("c0", "väg")
