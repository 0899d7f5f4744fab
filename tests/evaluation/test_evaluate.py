"""Evaluation over a whole source, with a predictor that answers by heart."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any, SupportsIndex, cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from segret_jax.config import EvalConfig, ModelConfig
from segret_jax.data.class_table import ClassTable
from segret_jax.data.sources import Sample
from segret_jax.errors import InputError
from segret_jax.evaluation.evaluate import READERS, Result, evaluate
from segret_jax.evaluation.inference import Prediction, Predictor, Prepared, ScaledImage
from segret_jax.evaluation.metrics import ConfusionAccumulator
from segret_jax.evaluation.plan import Plan, Tiling, make_plan
from segret_jax.models.factory import ModelBundle, build
from segret_jax.parallel import processes
from segret_jax.parallel.mesh import data_mesh
from tests import golden_weights as golden

TABLE = ClassTable(
    name="three",
    class_names=("sky", "road", "bicyclist"),
    colors=np.array([[0, 0, 255], [128, 64, 128], [255, 0, 0]], np.uint8),
    raw_ids=((0,), (1,), (2,)),
)


class Scenes:
    """Images of different sizes, whose red channel holds the label."""

    def __init__(
        self, count: int = 4, *, faulty: tuple[int, ...] = (), headless: tuple[int, ...] = ()
    ):
        self.count, self.faulty, self.headless = count, faulty, headless

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> Sample:
        i = int(index)
        if i in self.faulty:
            raise InputError(f"/data/{i}.jpg: cannot be read as an image")
        rng = np.random.default_rng(i)
        label = rng.integers(0, 2, (5 + i, 9 - i)).astype(np.uint8)
        image = np.repeat(label[..., None], 3, axis=2)
        label = np.where(rng.random(label.shape) < 0.2, np.uint8(255), label)
        return {"image": image, "label": label, "name": self.name(i)}

    def name(self, index: int) -> str:
        return f"scene{index}"

    def size(self, index: int) -> tuple[int, int]:
        if index in self.headless:
            raise InputError(f"/data/{index}.jpg: no such file")
        return 5 + index, 9 - index


class Reads(Predictor):
    """Predicts the red channel: right everywhere. With `wrong`, the opposite. Ties at the left."""

    stride, min_side, takes_size = 4, 1, False

    def __init__(self, *, wrong: bool = False, batch_size: int = 1):
        self.wrong = wrong
        self.config = EvalConfig(resize_target=(64, 32), batch_size=batch_size)
        self.mesh = data_mesh()
        self.batches: list[int] = []

    def prepare(self, image: np.ndarray, *, padding: Any = None) -> Prepared:
        scaled = ScaledImage(image, Tiling((32, 32), (32, 32)), None)
        return Prepared((image.shape[0], image.shape[1]), [scaled])

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        self.batches.append(len(batch))
        maps = [np.ascontiguousarray(image.scales[0].pixels[..., 0]) for image in batch]
        ties = [np.arange(m.shape[1]) < 1 + np.zeros_like(m) for m in maps]
        return [Prediction(1 - m if self.wrong else m, t) for m, t in zip(maps, ties, strict=True)]

    def forecast(self, plan: Plan) -> str:
        return "it will be quick"


def run(source: Scenes, *, predictor: Predictor | None = None, **options: Any) -> Result | None:
    return evaluate(predictor or Reads(), source, TABLE, **options)


def finished(source: Scenes, **options: Any) -> Result:
    return cast(Result, run(source, **options))


def result_of(counts: list[list[int]]) -> Result:
    confusion = ConfusionAccumulator(0, len(counts))
    confusion.counts += np.array(counts)
    return Result(confusion.metrics(), 7, 2, confusion)


def test_perfect_predictor_scores_one_and_wrong_one_zero():
    result = finished(Scenes())
    np.testing.assert_array_equal(result.metrics.iou, [1, 1, np.nan])
    assert (result.metrics.mean_iou, result.metrics.all_acc, result.num_images) == (1, 1, 4)
    assert finished(Scenes(), predictor=Reads(wrong=True)).metrics.mean_iou == 0


def test_every_image_is_shown_once_by_name_and_pictures_are_spread_over_the_set():
    shown = []
    result = finished(
        Scenes(),
        num_pictures=2,
        on_prediction=lambda name, image, pred: shown.append((name, image.shape, pred.shape)),
    )
    assert sorted(shown) == [(f"scene{i}", (5 + i, 9 - i, 3), (5 + i, 9 - i)) for i in range(4)]
    assert len(result.pictures) == 2
    for i, (image, label, pred) in zip((0, 3), result.pictures, strict=True):
        np.testing.assert_array_equal(image, Scenes()[i]["image"])
        np.testing.assert_array_equal(label, Scenes()[i]["label"])
        np.testing.assert_array_equal(pred, image[..., 0])
    assert finished(Scenes()).pictures == []


def test_a_faulty_image_stops_evaluation_and_is_named():
    with pytest.raises(InputError, match=r"/data/2\.jpg: cannot be read as an image"):
        run(Scenes(faulty=(2,)))


def test_skipped_images_mark_the_result_incomplete_and_are_named():
    result = finished(Scenes(faulty=(0, 2)), skip_faulty=True, num_pictures=4)
    names = [f"/data/{i}.jpg: cannot be read as an image" for i in (0, 2)]
    assert (result.num_images, result.faults) == (2, names)
    assert result.summary().endswith("(2 images)  INCOMPLETE: 2 images left out")
    content = result.to_dict(TABLE)
    assert (content["complete"], content["faults"]) == (False, names)
    for i, (image, _, _) in zip((1, 3), result.pictures, strict=True):
        np.testing.assert_array_equal(image, Scenes()[i]["image"])


def test_faulty_header_is_found_before_the_start():
    predictor = Reads()
    with pytest.raises(InputError, match=r"/data/3\.jpg: no such file"):
        run(Scenes(headless=(3,)), predictor=predictor)
    assert predictor.batches == []
    result = finished(Scenes(headless=(3,), faulty=(1,)), skip_faulty=True)
    faults = ["/data/1.jpg: cannot be read as an image", "/data/3.jpg: no such file"]
    assert (result.num_images, result.faults) == (2, faults)


@pytest.mark.parametrize("faulty", [(), (2,)])
def test_batches_count_every_image_once_and_keep_positions_of_faulty_ones(faulty):
    predictor = Reads(batch_size=3)
    predictor.mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    result = finished(Scenes(8, faulty=faulty), predictor=predictor, skip_faulty=True)
    one_by_one = finished(Scenes(8, faulty=faulty), skip_faulty=True)
    np.testing.assert_array_equal(result.confusion.counts, one_by_one.confusion.counts)
    expected = np.isin(np.arange(8), faulty, invert=True)
    np.testing.assert_array_equal(result.confusion.counted, expected)
    plan = make_plan({i: Scenes().size(i) for i in range(8)}, predictor.config, 3, stride=4)
    assert predictor.batches == [len(batch) for batch in plan.batches]


def test_ties_are_counted_where_there_is_a_label():
    labels = [Scenes()[i]["label"] for i in range(4)]
    assert finished(Scenes()).num_ties == sum((label[:, 0] != 255).sum() for label in labels)


def test_plan_and_forecast_are_announced_before_the_start():
    predictor = Reads()
    said: list[str] = []
    finished(Scenes(), predictor=predictor, announce=lambda text: said.append(
        f"{len(predictor.batches)} before: {text}"))  # fmt: skip
    (text,) = said
    assert text.startswith("0 before: 4 images in ")
    assert text.endswith("; it will be quick")
    finished(Scenes(1, headless=(0,)), skip_faulty=True, announce=said.append)
    assert len(said) == 1  # nothing to do, nothing to say


def test_prefetch_reads_a_bounded_number_of_images():
    read: list[int] = []
    ahead: list[int] = []

    class Alike(Scenes):
        def __getitem__(self, index: SupportsIndex) -> Sample:
            read.append(int(index))
            return super().__getitem__(0)

        def size(self, index: int) -> tuple[int, int]:
            return 5, 9

    class Slow(Reads):
        def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
            time.sleep(0.002)
            ahead.append(len(read) - sum(self.batches))
            return super().predict(batch)

    predictor = Slow()
    finished(Alike(60), predictor=predictor)
    assert sorted(read) == list(range(60))
    assert 1 < max(ahead) <= READERS + 2 * predictor.batch_size + 1


def test_a_set_of_faulty_images_only_has_no_score():
    result = finished(Scenes(2, faulty=(0, 1)), skip_faulty=True)
    assert np.isnan(result.metrics.mean_iou)
    assert result.summary().startswith("mIoU nan")
    assert result.to_dict(TABLE)["mIoU"] is None


def test_canceled_evaluation_returns_none():
    seen: list[str] = []
    result = run(
        Scenes(),
        on_prediction=lambda name, image, pred: seen.append(name),
        canceled=lambda: len(seen) == 2,
    )
    assert result is None
    assert len(set(seen)) == 2


def test_summary_and_table_list_the_worst_class_first_and_absent_ones_last():
    # sky: 8 of 10 found, no other pixel; road: 5 of 5, and 2 of the sky's; bicyclist: never
    result = result_of([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    assert result.summary() == "mIoU 75.71  mAcc 90.00  aAcc 86.67  (7 images)"
    assert result.per_class(TABLE).splitlines() == [
        "| class     |   IoU |   Acc |",
        "| --------- | ----: | ----: |",
        "| road      | 71.43 | 100.00 |",
        "| sky       | 80.00 | 80.00 |",
        "| bicyclist |     — |     — |",
    ]


def test_result_is_strict_json():
    result = result_of([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    content = result.to_dict(TABLE)
    added = {"num_images": 7, "num_ties": 2, "complete": True, "faults": []}
    assert content == result.metrics.to_dict(TABLE.class_names) | added
    assert json.loads(json.dumps(content, allow_nan=False)) == content


class Speckled(Scenes):
    def __getitem__(self, index: SupportsIndex) -> Sample:
        sample = super().__getitem__(index)
        pixels = np.random.default_rng(int(index)).integers(0, 256, sample["image"].shape)
        return {**sample, "image": pixels.astype(np.uint8)}


@pytest.mark.usefixtures("mini")
def test_batches_on_two_devices_count_what_single_images_do():
    """Windows, several of them for some images; the last batch of each kind is not full."""
    graph, params, stats = build(ModelConfig(), 3, seed=0)
    params = jax.tree.map(lambda p: p + 0.1 * golden.noise("p", p.shape), params)
    params["decoder"]["classify"]["bias"] *= 0
    config = EvalConfig(
        resize_target=(48, 32), mode="slide", window=(32, 32), stride=(16, 16), batch_size=2
    )
    together = finished(Speckled(7), predictor=Predictor(ModelBundle(graph, params, stats), config))
    config = dataclasses.replace(config, batch_size=1)
    alone = Predictor(
        ModelBundle(graph, params, stats), config, mesh=Mesh(np.array(jax.devices()[:1]), ("data",))
    )
    shown: dict[str, np.ndarray] = {}
    one_by_one = finished(
        Speckled(7), predictor=alone, on_prediction=lambda name, _, pred: shown.update({name: pred})
    )
    moved = together.confusion.counts - one_by_one.confusion.counts
    assert np.abs(moved).sum() <= 2 * one_by_one.num_ties
    for i in range(7):
        np.testing.assert_array_equal(shown[f"scene{i}"], alone.label_map(Speckled()[i]["image"]))
    assert np.count_nonzero(one_by_one.confusion.counts.sum(0)) > 1  # not one class everywhere


def in_processes(count: int, source: Scenes, monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """Evaluate as each of `count` processes would, with what the others have found."""
    told: list[list[bytes]] = []
    for index in range(count):
        mine: list[bytes] = []
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(processes, "gather", lambda x, mine=mine: mine.append(x) or [x])
        finished(source, num_pictures=2)
        told.append(mine)
    results = []
    for index in range(count):
        rounds = iter(zip(*told, strict=True))
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(processes, "gather", lambda x, rounds=rounds: list(next(rounds)))
        results.append(finished(source, num_pictures=2, skip_faulty=True))
    return results


@pytest.mark.parametrize("count", [2, 3, 7])
def test_several_processes_share_the_images_and_have_the_scores_of_all(count, monkeypatch):
    """Also more of them than there are images."""
    alone = finished(Scenes(), num_pictures=2)
    for result in in_processes(count, Scenes(), monkeypatch):
        assert result.num_images == 4
        assert result.num_ties == alone.num_ties
        np.testing.assert_array_equal(result.confusion.counts, alone.confusion.counts)
        ours, theirs = result.confusion.images, alone.confusion.images
        np.testing.assert_array_equal(ours.label, theirs.label)
        assert result.to_dict(TABLE) == alone.to_dict(TABLE)


def test_the_images_to_show_keep_their_label_and_prediction():
    source = Scenes()
    result = finished(source, predictor=Reads(batch_size=2))
    assert sorted(result.reduced_maps) == [0, 1, 2, 3]
    assert [*result.reduced_maps] == [*finished(source).reduced_maps]
    for i, (label, pred) in result.reduced_maps.items():
        np.testing.assert_array_equal(label, source[i]["label"])
        np.testing.assert_array_equal(pred, source[i]["image"][..., 0])
