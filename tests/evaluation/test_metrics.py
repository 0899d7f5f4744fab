"""Scores against the released code's, a double loop, and what they mean."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segret_jax.evaluation.detailed_counts import boundary_counts, counts_by_size
from segret_jax.evaluation.metrics import ConfusionAccumulator, Metrics
from tests import golden_weights as golden

IGNORE = 255


Pair = tuple[np.ndarray, np.ndarray]


def count(
    pairs: Sequence[Pair], num_classes: int, *, detailed: bool = False
) -> ConfusionAccumulator:
    confusion = ConfusionAccumulator(len(pairs), num_classes, detailed=detailed)
    for i, (pred, label) in enumerate(pairs):
        confusion.add(i, pred, label)
    return confusion


def score(pairs: Sequence[Pair], num_classes: int, *, detailed: bool = False) -> Metrics:
    return count(pairs, num_classes, detailed=detailed).metrics()


def as_uint8(rows: list) -> np.ndarray:
    return np.array(rows, np.uint8)


def random_pair(seed: int, num_classes: int = 5) -> Pair:
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
    np.testing.assert_array_equal(count(pairs, 5).counts, expected)


def test_outputs_beyond_the_classes_are_wrong_and_no_prediction_of_any_class():
    """As in mmsegmentation, whose histogram of predictions ends at the last class."""
    pairs = [(random_pair(i + 2, num_classes=9)[0], random_pair(i)[1]) for i in range(2)]
    counted = count(pairs, 5, detailed=True)
    metrics = counted.metrics()
    pred, label = (np.stack(maps) for maps in zip(*pairs, strict=True))
    valid = label != IGNORE
    for k in range(5):
        hits = (pred == k) & (label == k)
        union = ((pred == k) & valid) | (label == k)
        assert metrics.iou[k] == hits.sum() / union.sum()
        assert metrics.acc[k] == hits.sum() / (label == k).sum()
    assert metrics.all_acc == ((pred == label) & valid).sum() / valid.sum()
    by_image = counted.images
    assert by_image.label.sum() == valid.sum() == counted.counts.sum() + counted.others.sum()
    assert by_image.pred.sum() == counted.counts.sum() < valid.sum()
    assert metrics.boundary.label.sum() > metrics.boundary.pred.sum() > 0
    other = ConfusionAccumulator(2, 5, detailed=True)
    other.merge([counted.to_bytes()])
    assert other.metrics().to_dict(tuple("abcde")) == metrics.to_dict(tuple("abcde"))


def test_scores_equal_a_case_computed_by_hand():
    pred = as_uint8([[0, 0, 1, 1], [0, 2, 2, 2]])
    label = as_uint8([[0, 1, 1, 1], [0, 2, IGNORE, 1]])
    # class 0: 2 common, 3 predicted, 2 labeled; 1: 2, 2, 4; 2: 1, 2 (one is ignored), 1
    metrics = score([(pred, label)], 3)
    np.testing.assert_allclose(metrics.iou, [2 / 3, 2 / 4, 1 / 2])
    np.testing.assert_allclose(metrics.acc, [1, 2 / 4, 1])
    np.testing.assert_allclose(metrics.dice, [4 / 5, 4 / 6, 2 / 3])
    assert metrics.all_acc == pytest.approx(5 / 7)
    assert metrics.mean_iou == pytest.approx(5 / 9)
    content = metrics.to_dict(tuple("abc"))
    assert content["mDice"] == pytest.approx((4 / 5 + 4 / 6 + 2 / 3) / 3)
    assert content["fwIoU"] == pytest.approx((2 * 2 / 3 + 4 * 2 / 4 + 1 / 2) / 7)


def test_counts_are_summed_over_the_set_and_not_averaged_over_images():
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
    np.testing.assert_array_equal(metrics.dice, [4 / 5, 0, np.nan, np.nan])
    assert metrics.to_dict(tuple("abcd"))["fwIoU"] == pytest.approx(2 / 3)


def test_scores_of_no_pixels_are_nan_and_null_in_json():
    metrics = score([(as_uint8([[0]]), as_uint8([[IGNORE]]))], 2, detailed=True)
    assert np.isnan([*metrics.iou, *metrics.acc, metrics.all_acc]).all()
    assert np.isnan([metrics.mean_iou, metrics.mean_acc]).all()
    nothing = {"IoU": None, "Acc": None, "Dice": None, "BoundaryIoU": None}
    assert json.loads(json.dumps(metrics.to_dict(("a", "b")), allow_nan=False)) == {
        "mIoU": None, "mAcc": None, "aAcc": None, "fwIoU": None, "mDice": None,
        "mBoundaryIoU": None, "mIoU_small": None, "mIoU_medium": None, "mIoU_large": None,
        "mIoU_interval": [None, None], "classes": {"a": nothing, "b": nothing},
    }  # fmt: skip


def test_details_are_computed_only_on_request():
    metrics = score([random_pair(0)], 5)
    assert metrics.boundary is metrics.by_size is None
    content = metrics.to_dict(tuple("abcde"))
    assert content.keys() == {"mIoU", "mAcc", "aAcc", "fwIoU", "mDice", "mIoU_interval", "classes"}
    assert content["classes"]["c"].keys() == {"IoU", "Acc", "Dice"}


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
    confusion = ConfusionAccumulator(3, 2)
    confusion.counts[1, 1] = before
    for i in range(3):
        confusion.add(i, as_uint8([[1, 0]]), as_uint8([[1, 1]]))
    assert confusion.counts.tolist() == [[0, 0], [3, before + 3]]
    assert confusion.metrics().all_acc == (before + 3) / (before + 6) != 1


def test_the_highest_class_ids_do_not_overflow():
    ids = as_uint8([[253, 252, 0]])
    assert np.argwhere(count([(ids, ids)], 254).counts).tolist() == [[0, 0], [252, 252], [253, 253]]


# Images: each once, in any order


def test_each_images_counts_are_kept_by_index():
    pairs = [random_pair(seed) for seed in range(4)]
    confusion = ConfusionAccumulator(6, 5)
    for index in (4, 0, 3):
        confusion.add(index, *pairs[index % 4])
    images = confusion.images
    assert np.flatnonzero(confusion.counted).tolist() == [0, 3, 4]
    for row, index in enumerate((0, 3, 4)):
        pred, label = pairs[index % 4]
        for k in range(5):
            in_label, in_pred = label == k, (pred == k) & (label != IGNORE)
            assert images.label[row, k] == in_label.sum()
            assert images.pred[row, k] == in_pred.sum()
            assert images.intersection[row, k] == (in_label & in_pred).sum()


def test_an_image_is_not_counted_twice():
    pred, label = random_pair(0)
    confusion = count([(pred, label)], 5)
    before = confusion.counts.copy()
    with pytest.raises(ValueError, match="image 0 would be counted twice"):
        confusion.add(0, pred, label)
    np.testing.assert_array_equal(confusion.counts, before)


def test_threads_and_order_change_nothing():
    pairs = [random_pair(seed) for seed in range(200)]
    expected = count(pairs, 5, detailed=True)
    confusion = ConfusionAccumulator(200, 5, detailed=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: confusion.add(i, *pairs[i]), reversed(range(200))))
    np.testing.assert_array_equal(confusion.counts, expected.counts)
    np.testing.assert_array_equal(confusion.images.pred, expected.images.pred)
    names = tuple("abcde")
    assert confusion.metrics().to_dict(names) == expected.metrics().to_dict(names)


# Details: test_boundary.py and test_regions.py test what they are


def test_details_are_summed_over_images_without_ignored_pixels():
    pairs = [random_pair(seed) for seed in range(3)]
    metrics = score(pairs, 5, detailed=True)
    judged = [(np.where(label == IGNORE, label, pred), label) for pred, label in pairs]
    boundary = sum(boundary_counts(*pair, 5) for pair in judged)
    by_size = sum(counts_by_size(*pair, 5) for pair in judged)
    for found, expected in ((metrics.boundary, boundary), (metrics.by_size, by_size)):
        np.testing.assert_array_equal([found.intersection, found.label, found.pred], expected)
    content = metrics.to_dict(tuple("abcde"))
    assert content["mBoundaryIoU"] == pytest.approx(metrics.boundary.iou.mean())
    assert content["mIoU_small"] == pytest.approx(np.nanmean(metrics.by_size.iou[0]))
    assert content["classes"]["b"]["BoundaryIoU"] == metrics.boundary.iou[1]
