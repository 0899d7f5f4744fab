"""Counts of pixels and the bootstrap against loops, and against what an interval must cover."""

import numpy as np
import pytest

from segret_jax.evaluation.pixel_counts import RESAMPLES, PixelCounts, interval, resampled_mean_iou


def random_images(num_images: int, num_classes: int, seed: int = 0) -> PixelCounts:
    rng = np.random.default_rng(seed)
    intersection, rest, false = rng.integers(0, 1000, (3, num_images, num_classes))
    return PixelCounts(intersection, intersection + rest, intersection + false)


def mean_iou(images: PixelCounts, chosen: np.ndarray) -> float:
    """mIoU of the chosen images, class by class."""
    scores = []
    for k in range(images.label.shape[1]):
        hits = sum(int(images.intersection[i, k]) for i in chosen)
        label, pred = (sum(int(x[i, k]) for i in chosen) for x in (images.label, images.pred))
        if label + pred - hits:
            scores.append(hits / (label + pred - hits))
    return float(np.mean(scores)) if scores else float("nan")


def draws(num_images: int, seed: int) -> np.ndarray:
    """The images of each resample: one stream of integers, row by row."""
    return np.random.default_rng(seed).integers(num_images, size=(RESAMPLES, num_images))


def test_resampled_scores_equal_a_loop():
    images = random_images(7, 3)
    images.intersection[:, 2] = images.label[:, 2] = images.pred[:, 2] = 0  # never occurs
    images.intersection[1:, 1] = images.label[1:, 1] = images.pred[1:, 1] = 0  # in one image only
    expected = [mean_iou(images, chosen) for chosen in draws(7, seed=0)]
    np.testing.assert_allclose(resampled_mean_iou(images), expected, rtol=1e-12)
    assert len(set(expected)) > 100


def test_resamples_depend_on_the_seed_alone():
    one, other = random_images(9, 4, seed=1), random_images(9, 4, seed=2)
    expected = [mean_iou(other, d) - mean_iou(one, d) for d in draws(9, seed=0)]
    difference = resampled_mean_iou(other) - resampled_mean_iou(one)
    np.testing.assert_allclose(difference, expected, rtol=0, atol=1e-12)
    assert not np.array_equal(resampled_mean_iou(one), resampled_mean_iou(one, seed=1))


def test_sums_of_large_counts_stay_exact():
    huge = 2**45 + 1
    images = PixelCounts(*(np.full((3, 1), x, np.int64) for x in (huge, huge + 2, huge)))
    expected = 3 * huge / (3 * huge + 6)
    assert set(resampled_mean_iou(images)) == {expected}


def test_the_interval_is_the_middle_of_the_samples_without_nan():
    samples = np.array([*np.linspace(0, 1, 1001), np.nan])
    assert interval(samples) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([np.nan, np.nan]))).all()
    assert np.isnan(interval(np.zeros(0))).all()


def test_interval_of_equal_images_is_a_point_and_of_none_is_nan():
    alike = PixelCounts(*(np.full((5, 2), x, np.int64) for x in (6, 8, 7)))
    assert interval(resampled_mean_iou(alike)) == (6 / 9, 6 / 9)
    assert np.isnan(interval(resampled_mean_iou(random_images(0, 2)))).all()


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Sets of 60 images of a population: the population's mIoU lies inside in some 95% of them."""
    population = random_images(4000, 3)
    truth = mean_iou(population, np.arange(4000))
    rng, inside = np.random.default_rng(3), 0
    for _ in range(100):
        low, high = interval(resampled_mean_iou(population[rng.integers(4000, size=60)]))
        inside += low <= truth <= high
    assert 88 <= inside <= 99


def test_iou_is_nan_where_the_union_is_empty_and_the_mean_skips_it():
    counts = PixelCounts(*(np.array([row]) for row in ([2, 0, 0], [4, 0, 3], [3, 0, 0])))
    np.testing.assert_array_equal(counts.iou, [[2 / 5, np.nan, 0]])
    np.testing.assert_array_equal(counts.mean_iou, [1 / 5])
