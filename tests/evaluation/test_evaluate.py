"""Evaluation over a whole source, with a predictor that answers by heart."""

import json
from typing import Any, SupportsIndex, cast

import numpy as np
import pytest

from segret_jax.data.datasets import ClassTable
from segret_jax.data.sources import Sample
from segret_jax.errors import InputError
from segret_jax.evaluation.evaluate import Result, evaluate
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.metrics import ConfusionMatrix

TABLE = ClassTable(
    name="three",
    class_names=("sky", "road", "bicyclist"),
    colors=np.array([[0, 0, 255], [128, 64, 128], [255, 0, 0]], np.uint8),
    raw_ids=(0, 1, 2),
)


class Scenes:
    """Images of different sizes, whose red channel holds the label."""

    def __init__(self, count: int = 4, *, faulty: tuple[int, ...] = ()):
        self.count, self.faulty = count, faulty

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
        return {"image": image, "label": label, "name": f"scene{i}"}


class Reads:
    """Predicts the red channel: right everywhere. With `wrong`, the opposite."""

    def __init__(self, *, wrong: bool = False):
        self.wrong = wrong

    def label_map(self, image: np.ndarray) -> np.ndarray:
        return 1 - image[..., 0] if self.wrong else image[..., 0]


def run(source: Scenes, *, wrong: bool = False, **options: Any) -> Result | None:
    predictor = object.__new__(Predictor)  # passes for one where types are checked
    predictor.label_map = Reads(wrong=wrong).label_map
    return evaluate(predictor, source, TABLE, **options)


def finished(source: Scenes, **options: Any) -> Result:
    return cast(Result, run(source, **options))


def result_of(counts: list[list[int]]) -> Result:
    matrix = ConfusionMatrix(len(counts))
    matrix.counts += np.array(counts)
    return Result(matrix.metrics(), 7)


def test_a_perfect_predictor_scores_one_and_a_wrong_one_zero():
    result = finished(Scenes())
    np.testing.assert_array_equal(result.metrics.iou, [1, 1, np.nan])
    assert (result.metrics.mean_iou, result.metrics.all_acc, result.num_images) == (1, 1, 4)
    assert finished(Scenes(), wrong=True).metrics.mean_iou == 0


def test_every_image_is_shown_once_by_name_and_pictures_are_spread_over_the_set():
    shown = []
    result = finished(
        Scenes(),
        num_pictures=2,
        on_prediction=lambda name, image, pred: shown.append((name, image.shape, pred.shape)),
    )
    assert shown == [(f"scene{i}", (5 + i, 9 - i, 3), (5 + i, 9 - i)) for i in range(4)]
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


def test_a_set_of_faulty_images_only_has_no_score():
    result = finished(Scenes(2, faulty=(0, 1)), skip_faulty=True)
    assert np.isnan(result.metrics.mean_iou)
    assert result.summary().startswith("mIoU nan")
    assert result.to_dict(TABLE)["mIoU"] is None


def test_cancelled_between_images_there_is_no_result():
    seen: list[str] = []
    result = run(
        Scenes(),
        on_prediction=lambda name, image, pred: seen.append(name),
        cancelled=lambda: len(seen) == 2,
    )
    assert result is None
    assert seen == ["scene0", "scene1"]


def test_summary_and_table_in_percent_worst_class_first_absent_ones_last():
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


def test_the_result_as_json():
    content = result_of([[8, 2, 0], [0, 5, 0], [0, 0, 0]]).to_dict(TABLE)
    assert json.loads(json.dumps(content, allow_nan=False)) == {
        "mIoU": pytest.approx(0.757142857), "mAcc": 0.9, "aAcc": pytest.approx(13 / 15),
        "classes": {
            "sky": {"IoU": 0.8, "Acc": 0.8},
            "road": {"IoU": pytest.approx(5 / 7), "Acc": 1.0},
            "bicyclist": {"IoU": None, "Acc": None},
        },
        "num_images": 7, "complete": True, "faults": [],
    }  # fmt: skip
