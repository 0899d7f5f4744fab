"""The fingerprint: what changes its id, what does not, and what its hashes depend on."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.config import Config, DataConfig, EvalConfig, ModelConfig
from segret_jax.data.class_table import ClassTable, load_class_table
from segret_jax.evaluation.protocol import fingerprint
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
