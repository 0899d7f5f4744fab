"""Scores against the released code's, a double loop, and what they mean."""

import json

import numpy as np
import pytest

from segret_jax.evaluation.metrics import ConfusionMatrix, Metrics
from tests import golden_weights as golden

IGNORE = 255


def score(pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int) -> Metrics:
    matrix = ConfusionMatrix(num_classes)
    for pred, label in pairs:
        matrix.add(pred, label)
    return matrix.metrics()


def as_uint8(rows: list) -> np.ndarray:
    return np.array(rows, np.uint8)


def random_pair(seed: int, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pred, label = rng.integers(0, num_classes, (2, 13, 17)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE
    return pred, label


def test_scores_equal_the_original():
    expected = golden.load("metric")
    pairs = [(expected[f"pred{i}"], expected[f"gt{i}"]) for i in range(4)]
    metrics = score(pairs, 12)
    np.testing.assert_allclose(metrics.iou, expected["IoU"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(metrics.acc, expected["Acc"], rtol=0, atol=1e-9)
    assert metrics.all_acc == pytest.approx(expected["aAcc"], abs=1e-9)
    assert metrics.mean_iou == pytest.approx(np.nanmean(expected["IoU"]), abs=1e-9)
    assert metrics.mean_acc == pytest.approx(np.nanmean(expected["Acc"]), abs=1e-9)


def test_counts_equal_a_double_loop():
    pairs = [random_pair(seed) for seed in range(3)]
    expected = np.zeros((5, 5), int)
    for pred, label in pairs:
        for y in range(label.shape[0]):
            for x in range(label.shape[1]):
                if label[y, x] != IGNORE:
                    expected[label[y, x], pred[y, x]] += 1
    matrix = ConfusionMatrix(5)
    for pred, label in pairs:
        matrix.add(pred, label)
    np.testing.assert_array_equal(matrix.counts, expected)


def test_scores_of_a_case_done_by_hand():
    pred = as_uint8([[0, 0, 1, 1], [0, 2, 2, 2]])
    label = as_uint8([[0, 1, 1, 1], [0, 2, IGNORE, 1]])
    # class 0: 2 common, 3 predicted, 2 labelled; 1: 2, 2, 4; 2: 1, 2 (one is ignored), 1
    metrics = score([(pred, label)], 3)
    np.testing.assert_allclose(metrics.iou, [2 / 3, 2 / 4, 1 / 2])
    np.testing.assert_allclose(metrics.acc, [1, 2 / 4, 1])
    assert metrics.all_acc == pytest.approx(5 / 7)
    assert metrics.mean_iou == pytest.approx(5 / 9)


def test_areas_are_summed_over_the_set_and_not_averaged_over_images():
    one = as_uint8([[0, 0]]), as_uint8([[0, 0]])
    other = as_uint8([[0] * 8]), as_uint8([[1] * 8])
    assert score([one, other], 2).iou.tolist() == [0.2, 0]


def test_ignored_pixels_count_nowhere():
    pred, label = random_pair(0)
    plain = score([(pred, label)], 5)
    pred[label == IGNORE] = (pred[label == IGNORE] + 1) % 5
    np.testing.assert_array_equal(score([(pred, label)], 5).iou, plain.iou)
    everything = np.full_like(label, IGNORE)
    np.testing.assert_array_equal(score([(pred, label), (pred, everything)], 5).acc, plain.acc)


def test_nan_where_a_class_never_occurs_and_means_skip_it():
    pred, label = as_uint8([[0, 0, 1, 1]]), as_uint8([[0, 0, 0, IGNORE]])
    metrics = score([(pred, label)], 4)
    # 1 is predicted, though wrongly: its union is not empty, its label area is.
    np.testing.assert_array_equal(metrics.iou, [2 / 3, 0, np.nan, np.nan])
    np.testing.assert_array_equal(metrics.acc, [2 / 3, np.nan, np.nan, np.nan])
    assert metrics.mean_iou == pytest.approx(1 / 3)
    assert metrics.mean_acc == pytest.approx(2 / 3)


def test_of_nothing_every_score_is_nan_and_none_in_json():
    metrics = score([(as_uint8([[0]]), as_uint8([[IGNORE]]))], 2)
    assert np.isnan([*metrics.iou, *metrics.acc, metrics.all_acc]).all()
    assert np.isnan([metrics.mean_iou, metrics.mean_acc]).all()
    nothing = {"IoU": None, "Acc": None}
    assert json.loads(json.dumps(metrics.to_dict(("a", "b")), allow_nan=False)) == {
        "mIoU": None, "mAcc": None, "aAcc": None, "classes": {"a": nothing, "b": nothing},
    }  # fmt: skip


def test_a_permutation_of_the_classes_permutes_the_scores():
    pred, label = random_pair(1)
    plain = score([(pred, label)], 5)
    order = np.array([3, 0, 4, 1, 2], np.uint8)  # class i becomes order[i]
    table = np.full(256, IGNORE, np.uint8)
    table[:5] = order
    permuted = score([(table[pred], table[label])], 5)
    np.testing.assert_array_equal(permuted.iou[order], plain.iou)
    np.testing.assert_array_equal(permuted.acc[order], plain.acc)
    assert permuted.all_acc == plain.all_acc
    assert len(set(plain.iou)) == 5


@pytest.mark.parametrize("before", [2**24, 2**31, 2**53 // 2])
def test_counts_stay_exact_where_float32_and_int32_stop_counting(before):
    matrix = ConfusionMatrix(2)
    matrix.counts[1, 1] = before
    for _ in range(3):
        matrix.add(as_uint8([[1, 0]]), as_uint8([[1, 1]]))
    assert matrix.counts.tolist() == [[0, 0], [3, before + 3]]
    assert matrix.metrics().all_acc == (before + 3) / (before + 6) != 1


def test_the_highest_class_ids_do_not_overflow():
    ids = as_uint8([[253, 252, 0]])
    matrix = ConfusionMatrix(254)
    matrix.add(ids, ids)
    assert np.argwhere(matrix.counts).tolist() == [[0, 0], [252, 252], [253, 253]]
