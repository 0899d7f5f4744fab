"""Prepared datasets give what their folders give, and name what is damaged."""

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from segret_jax.config import DataConfig
from segret_jax.data.datasets import get_dataset, load_dataset
from segret_jax.data.pipeline import open_source, training_dataset
from segret_jax.data.shards import builders
from segret_jax.data.shards.manifest import INDEX, MANIFEST, read_manifest, stored_file
from segret_jax.data.shards.prepare import prepare
from segret_jax.data.shards.prepared import PreparedSource, open_files
from segret_jax.data.sources import FolderSource, RecordSource
from segret_jax.errors import InputError
from tests.data.pairs import flip, write_dataset

CAMVID = get_dataset("camvid")
SHARED = Path(__file__).parents[3] / "shared" / "data"


def write_camvid(root: Path, **counts: int) -> Path:
    write_dataset(root, CAMVID, CAMVID.layouts[0], counts or {"training": 5, "validation": 3})
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with CamVid-like pairs in `raw`, prepared in `data`; not to be changed."""
    top = tmp_path_factory.mktemp("camvid")
    write_camvid(top / "raw")
    prepare(CAMVID, top / "raw", str(top / "data"), shards=2)
    return top


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the prepared dataset, to be damaged."""
    return shutil.copytree(made / "data", tmp_path / "data")


def assert_same(prepared: RecordSource, folder: FolderSource) -> None:
    """Assert that both give the same records, names, sizes and samples in the same order."""
    assert isinstance(prepared, PreparedSource)
    assert list(prepared.names) == list(folder.names)
    assert prepared.layout is folder.layout
    for i in range(len(folder)):
        one, two = prepared.record(i), folder.record(i)
        assert (one.name, one.image, one.label) == (two.name, two.image, two.label)
        assert prepared.size(i) == folder.size(i)
        mine, theirs = prepared[i], folder[i]
        assert mine["name"] == theirs["name"]
        np.testing.assert_array_equal(mine["image"], theirs["image"])
        np.testing.assert_array_equal(mine["label"], theirs["label"])


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("camvid", "annotations"),
        ("camvid", "segnet"),
        ("ade20k", "annotations"),
        ("cityscapes", "labelIds"),
        ("coco_stuff10k", "mat"),
        ("coco_stuff164k", "stuffthingmaps"),
    ],
)
def test_every_dataset_gives_what_its_folder_gives(name: str, layout: str, tmp_path: Path) -> None:
    spec = get_dataset(name)
    written = write_dataset(
        tmp_path / "raw", spec, spec.layout(layout), {"training": 3, "validation": 2}
    )
    prepare(spec, tmp_path / "raw", str(tmp_path / "data"), shards=2)
    for split, scenes in written.items():
        prepared = open_files(spec, tmp_path / "data", split)
        assert_same(prepared, FolderSource(spec, tmp_path / "raw", split))
        by_name = {scene["name"]: scene["label"] for scene in scenes}
        for i in range(len(prepared)):
            np.testing.assert_array_equal(prepared[i]["label"], by_name[prepared.name(i)])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real photographs are not part of the project")
@pytest.mark.parametrize(("name", "folder"), [("ade20k", "ade20k_sample"), ("camvid", "camvid")])
def test_real_photographs_give_what_their_folder_gives(
    name: str, folder: str, tmp_path: Path
) -> None:
    spec = get_dataset(name)
    prepare(spec, SHARED / folder, str(tmp_path), shards=1)
    prepared = open_files(spec, tmp_path, "validation")
    assert_same(prepared, FolderSource(spec, SHARED / folder, "validation"))


def test_prepared_data_gives_the_same_batches_as_its_folder(made: Path) -> None:
    batches = []
    for root in ("raw", "data"):
        config = DataConfig(dataset="camvid", root=str(made / root), crop=(32, 32))
        dataset = training_dataset(open_source(config, "training"), config, batch_size=2, seed=3)
        batches.append([dataset[k] for k in range(4)])
    for one, two in zip(*batches, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])


def test_the_root_may_be_any_folder_above_the_prepared_data(made: Path) -> None:
    for below in ("", "camvid", "camvid/1.0.0"):
        assert len(open_files(CAMVID, made / "data" / below, "validation")) == 3


def test_a_prepared_source_pickles_small_and_names_no_machine(made: Path) -> None:
    source = open_files(CAMVID, made / "data", "training")
    before = source[4]
    content = pickle.dumps(source)
    copy = pickle.loads(content)
    np.testing.assert_array_equal(copy[4]["image"], before["image"])
    assert len(content) < 10_000
    assert repr(copy) == "PreparedSource(camvid, training, 5 images)"
    with pytest.raises(IndexError):
        copy[5]


# Damage


def write_index(folder: Path, text: str) -> None:
    """Write another index.json, and its checksum into the manifest."""
    (folder / INDEX).write_text(text)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][INDEX] = dataclasses.asdict(stored_file(folder / INDEX))
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_damaged_record_is_named_and_the_others_are_read(data: Path) -> None:
    source = open_files(CAMVID, data, "training")
    shard = data / "camvid/1.0.0/camvid-training.array_record-00001-of-00002"
    flip(shard, source.record(3).image)
    again = open_files(CAMVID, data, "training")
    with pytest.raises(InputError) as caught:
        again[3]
    message = str(caught.value)
    assert message.startswith(
        f"{shard}, record 1 (city_1/t001) is damaged: Corrupted Riegeli/records file"
    )
    assert f"`segret data verify {data}/camvid/1.0.0` lists all" in message
    assert "\n" not in message
    assert [again[i]["name"] for i in (0, 1, 2, 4)] == [again.names[i] for i in (0, 1, 2, 4)]


def test_a_shard_that_is_cut_off_or_gone_is_named(data: Path) -> None:
    shard = data / "camvid/1.0.0/camvid-training.array_record-00000-of-00002"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(
        InputError, match=rf"{re.escape(str(shard))}, record 0 \(city_0/t000\) is damaged"
    ):
        open_files(CAMVID, data, "training")[0]
    shard.unlink()
    with pytest.raises(
        InputError, match=rf"{re.escape(str(shard))}, record 1 \(city_0/t002\) is damaged"
    ):
        open_files(CAMVID, data, "training")[1]


def test_a_record_under_another_name_or_checksum_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data / "camvid/1.0.0"
    write_index(folder, (folder / INDEX).read_text().replace('"city_0/t004"', '"777"'))
    source = open_files(CAMVID, data, "training")
    with pytest.raises(InputError, match=r"record 0 \(777\) is damaged: it holds city_0/t004;"):
        source[2]
    monkeypatch.setattr(builders, "checksum", lambda *content: 0)
    with pytest.raises(InputError, match=r"\(city_0/t002\) is damaged: its checksum does not fit;"):
        source[1]


def test_the_checksum_covers_name_image_and_label() -> None:
    whole = builders.checksum(b"a", b"bc", b"d")
    others = [(b"x", b"bc", b"d"), (b"a", b"bx", b"d"), (b"a", b"bc", b"x")]
    assert whole not in [builders.checksum(*other) for other in others]


def test_prepared_data_without_a_manifest_is_incomplete(data: Path) -> None:
    folder = data / "camvid/1.0.0"
    (folder / MANIFEST).unlink()
    remedy = "has no manifest.json.*run segret data prepare again"
    with pytest.raises(InputError, match=f"{folder} is incomplete .*{remedy}"):
        open_files(CAMVID, data, "training")
    folder.rename(folder.with_name("incomplete.ABC_1.0.0"))
    with pytest.raises(InputError, match="is incomplete"):
        open_files(CAMVID, data, "training")


def test_another_class_table_is_refused(data: Path, tmp_path: Path) -> None:
    classes = [{"id": 0, "name": "cat", "color": "#ff0080"}]
    (tmp_path / "own.json").write_text(json.dumps({"name": "camvid", "classes": classes}))
    with pytest.raises(InputError, match="holds camvid prepared with another class table"):
        open_files(load_dataset(tmp_path / "own.json"), data, "training")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (rb".*", b"null", "it is NoneType, not dict"),
        (rb".*", b"\xff\xfe", "UnicodeDecodeError"),
        (rb".$", b"", "JSONDecodeError"),
        (rb'"version": "1.0.0",', b"", "KeyError('version')"),
        (rb'"dataset": "camvid"', b'"dataset": 3', "dataset is int, not str"),
        (rb'"splits": .*"files"', b'"splits": [], "files"', "splits is list, not dict"),
        (rb'(00002": )3', rb"\1null", "00001-of-00002 is NoneType, not int"),
        (rb'"bytes": \d+', b'"bytes": "1"', "bytes is str, not int"),
    ],
)
def test_a_damaged_manifest_is_named(old: bytes, new: bytes, reason: str, data: Path) -> None:
    manifest = data / "camvid/1.0.0" / MANIFEST
    damaged = re.sub(old, new, manifest.read_bytes().strip(), count=1, flags=re.DOTALL)
    manifest.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"{manifest} is damaged .*{re.escape(reason)}.*; delete"):
        open_files(CAMVID, data, "training")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r".*", "[", "JSONDecodeError"),
        (r"sizes", "size", "KeyError('sizes')"),
        (r'"city_0/t004", ', "", "4 names, 5 sizes and 5 records of training"),
        (r"\[32, 48\], ", "", "5 names, 4 sizes and 5 records of training"),
    ],
)
def test_a_damaged_index_is_named(old: str, new: str, reason: str, data: Path) -> None:
    folder = data / "camvid/1.0.0"
    damaged = re.sub(old, new, (folder / INDEX).read_text(), count=1)
    (folder / INDEX).write_text(damaged)
    with pytest.raises(InputError, match=r"index\.json is damaged .*does not fit manifest\.json"):
        open_files(CAMVID, data, "training")
    write_index(folder, damaged)
    with pytest.raises(
        InputError, match=rf"index\.json is damaged .*{re.escape(reason)}.*; delete"
    ):
        open_files(CAMVID, data, "training")


def test_a_split_that_was_not_prepared_is_named(tmp_path: Path) -> None:
    write_camvid(tmp_path / "raw", validation=2)
    prepare(CAMVID, tmp_path / "raw", str(tmp_path / "data"), shards=1)
    assert read_manifest(tmp_path / "data/camvid/1.0.0").splits.keys() == {"validation"}
    with pytest.raises(InputError, match=r"unknown split of .*'training'\. Known: validation"):
        open_files(CAMVID, tmp_path / "data", "training")


def test_what_was_prepared_of_another_dataset_is_not_taken_for_it(data: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        open_files(get_dataset("ade20k"), data, "training")
