"""The fingerprint: what changes its id, what does not, and what its hashes depend on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.config import Config, DataConfig, EvalConfig, ModelConfig
from segret_jax.data.class_table import ClassTable, load_class_table
from segret_jax.evaluation.protocol import code_digest, fingerprint, weights_digest
from segret_jax.models.families import FAMILIES

TABLE = load_class_table("camvid")
NAMES = ("c", "a", "b")
AREAS = np.arange(33).reshape(3, 11)
WEIGHTS = {"params": {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(3)}, "stats": [np.ones(2)]}


def made(config: Config | None = None, **changes: Any) -> dict[str, Any]:
    settings = {
        "table": TABLE, "split": "validation", "names": NAMES, "label_pixels": AREAS,
        "lookup": np.arange(256, dtype=np.uint8), "variables": WEIGHTS, "devices": jax.devices(),
        "is_stretched": False,
    } | changes  # fmt: skip
    return fingerprint(config or Config(), **settings)


def differs(other: dict[str, Any]) -> set[str]:
    """The settings that differ from the default's, of both kinds."""
    groups = ("must_agree", "may_differ")
    mine, others = ({**print_[groups[0]], **print_[groups[1]]} for print_ in (made(), other))
    assert mine.keys() == others.keys()
    return {key for key in mine if mine[key] != others[key]}


def evaluation(**settings: Any) -> Config:
    return Config(eval=EvalConfig(**settings))


def test_fingerprint_is_plain_json_and_deterministic():
    stored = json.loads(json.dumps(made(), allow_nan=False))
    assert stored == made()
    assert len(stored["id"]) == 12


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (evaluation(resize_target=(2048, 1024)), {"resize_target"}),
        (evaluation(multiple_of=1), {"multiple_of"}),
        (evaluation(mode="slide"), {"mode", "window", "stride"}),
        (evaluation(scales=(0.5, 1.0)), {"scales"}),
        (evaluation(flip=True), {"flip"}),
        (Config(data=DataConfig(dataset="camvid")), {"dataset"}),
    ],
)
def test_each_setting_of_the_protocol_changes_the_id(config, keys):
    other = made(config)
    assert differs(other) == keys <= other["must_agree"].keys()
    assert other["id"] != made()["id"]


def test_windows_count_only_where_they_are_used():
    assert differs(made(evaluation(window=(256, 256), stride=(128, 128)))) == set()
    sliding = [made(evaluation(mode="slide", stride=stride)) for stride in [(384, 384), (128, 384)]]
    assert sliding[0]["id"] != sliding[1]["id"]


def test_the_shortest_side_counts_where_an_image_was_stretched_to_it(monkeypatch):
    plain = made()
    family = dataclasses.replace(FAMILIES["segret"], multiple_of=32, min_side=193)
    monkeypatch.setitem(FAMILIES, "segret", family)
    assert made() == plain
    stretched = made(is_stretched=True)
    assert stretched["must_agree"] == plain["must_agree"] | {"min_side": 224}
    assert stretched["may_differ"] == plain["may_differ"]
    assert stretched["id"] != plain["id"]


def test_the_id_is_that_of_results_on_disk():
    """Another id for the same evaluation would make old results incomparable."""
    assert made()["id"] == "ed5db015d2ea"


def renamed() -> ClassTable:
    return dataclasses.replace(TABLE, class_names=(*TABLE.class_names[:-1], "cyclist"))


def other_ids() -> ClassTable:
    return dataclasses.replace(TABLE, raw_ids=((7,), *TABLE.raw_ids[1:]))


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"split": "training"}, {"split"}),
        ({"table": renamed()}, {"classes"}),
        ({"table": other_ids()}, {"classes"}),
        ({"names": ("c", "a", "bb")}, {"images"}),
        ({"names": ("c", "a"), "label_pixels": AREAS[:2]}, {"num_images", "images", "labels"}),
        ({"label_pixels": AREAS + np.eye(3, 11, dtype=int)}, {"labels"}),
    ],
)
def test_other_images_labels_or_classes_change_the_id(changes, keys):
    assert differs(made(**changes)) == keys
    assert made(**changes)["id"] != made()["id"]


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"variables": {"params": np.zeros(3)}}, {"weights"}),
        ({"lookup": np.zeros(256, np.uint8)}, {"stored_labels"}),
        ({"lookup": None}, {"stored_labels"}),
        ({"devices": jax.devices()[:1]}, {"devices"}),
        ({"config": Config(model=ModelConfig(dtype="bfloat16"))}, {"model.dtype"}),
        ({"config": evaluation(batch_size=4)}, {"batch_size"}),
        ({"config": evaluation(pictures=0)}, set()),
    ],
)
def test_what_may_differ_is_recorded_and_leaves_the_id(changes, keys):
    assert differs(made(**changes)) == keys
    assert made(**changes)["id"] == made()["id"]


def test_the_order_of_the_images_does_not_matter():
    order = [2, 0, 1]
    names = tuple(NAMES[i] for i in order)
    assert differs(made(names=names, label_pixels=AREAS[order])) == set()
    assert differs(made(names=names)) == {"labels"}


def test_own_dataset_is_named_without_its_folder():
    places = ("mine.json", "/elsewhere/mine.json")
    prints = [made(Config(data=DataConfig(dataset=place))) for place in places]
    assert prints[0] == prints[1]
    assert prints[0]["must_agree"]["dataset"] == "mine"


def test_every_evaluation_setting_is_in_the_protocol_or_listed_as_excluded():
    settings = {field.name for field in dataclasses.fields(EvalConfig)}
    assert settings - made()["must_agree"].keys() == {"batch_size", "pictures"}


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"w": np.arange(6.0).reshape(3, 2), "b": np.zeros(3)}, "stats": [np.ones(2)]},
        {"params": {"w": np.arange(6.0).reshape(2, 3), "c": np.zeros(3)}, "stats": [np.ones(2)]},
        jax.tree.map(lambda x: x.view(np.int64), WEIGHTS),
        jax.tree.map(lambda x: np.nextafter(x, 9), WEIGHTS),
    ],
    ids=["shape", "path", "dtype", "last bit"],
)
def test_weights_differ_by_shape_path_dtype_and_each_bit(other):
    assert weights_digest(other) != weights_digest(WEIGHTS)


def test_weights_are_the_same_on_the_device_and_whatever_the_keys_of_lists():
    stored = {"stats": {"0": np.ones(2)}, "params": jax.tree.map(jax.numpy.asarray, {"a": 1.5})}
    again = {"params": {"a": np.float32(1.5)}, "stats": {0: np.ones(2)}}
    assert weights_digest(stored) == weights_digest(again)


def test_code_differs_by_content_and_path_of_python_files(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("1")
    seen = {code_digest(tmp_path)}
    (tmp_path / "notes.txt").write_text("2")
    seen.add(code_digest(tmp_path))
    assert len(seen) == 1
    (tmp_path / "a.py").write_text("x = 2\n")
    seen.add(code_digest(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").rename(tmp_path / "sub" / "a.py")
    assert len(seen | {code_digest(tmp_path)}) == 3
