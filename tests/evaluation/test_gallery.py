"""Which images are shown, and their files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segret_jax.errors import InputError
from segret_jax.evaluation import gallery
from segret_jax.evaluation.pixel_counts import PixelCounts
from tests.report.made_up import Scenes

COLORS = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)


def counts_of(scores: list[float]) -> PixelCounts:
    """Return images of one class whose IoU is `scores`."""
    hits = np.array([[round(100 * score)] for score in scores], np.int64)
    return PixelCounts(hits, np.full_like(hits, 100), hits)


def test_worst_best_and_median_images_are_chosen_in_this_order():
    scores = [i / 40 for i in range(40)]
    order = np.random.default_rng(0).permutation(40)
    chosen = gallery.choose(counts_of([scores[i] for i in order]))
    shown = [int(order[i]) for i in chosen]
    assert shown[:12] == [0, 1, 2, 3, 39, 38, 37, 36, 18, 19, 20, 21]
    assert len(set(chosen)) == len(chosen)


def test_every_class_has_its_worst_image_and_the_number_is_bounded():
    rng = np.random.default_rng(0)
    label = rng.integers(1, 100, (500, 30))
    hits = rng.integers(0, 100, (500, 30)) * label // 100
    images = PixelCounts(hits, label, label)
    chosen = gallery.choose(images)
    assert len(chosen) == gallery.MAX_IMAGES
    worst = {gallery.ranking(images.iou[:, k], label[:, k])[0] for k in range(30)}
    assert worst <= set(chosen)
    assert gallery.choose(images) == chosen


def test_a_class_is_ranked_only_where_it_is_labeled():
    hits = np.array([[5, 0], [3, 0], [5, 2]], np.int64)
    label = np.array([[5, 0], [5, 0], [5, 4]], np.int64)
    scores = gallery.scores_by_image(PixelCounts(hits, label, hits + 1))
    np.testing.assert_array_equal(np.isnan(scores[:, 1]), [True, True, False])
    assert gallery.ranking(scores[:, 1], label[:, 1]) == [2]


def test_of_equal_scores_the_larger_area_is_worse():
    assert gallery.ranking(np.array([0.0, np.nan, 0.0]), np.array([3, 9, 7])) == [2, 0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 240), (480, 240)), ((2048, 1024), (480, 240)), ((3000, 1), (480, 1))],
)
def test_maps_are_reduced_to_a_box_and_not_enlarged(size, expected):
    assert gallery.reduced_size(*size) == expected


def test_maps_of_several_processes_are_merged_in_the_order_asked_for():
    own, other = gallery.ReducedMaps(), gallery.ReducedMaps()
    for reduced, i in ((own, 0), (other, 1), (own, 2)):
        reduced.add(i, np.full((4, 6), i, np.uint8), np.full((4, 6), i + 10, np.uint8))
    merged = gallery.merge([own.to_bytes([2, 1]), other.to_bytes([2, 1])], [2, 1])
    assert [*merged] == [2, 1]
    for i, (label, pred) in merged.items():
        assert (int(label[0, 0]), int(pred[0, 0]), label.shape) == (i, i + 10, (4, 6))


class Faulty(Scenes):
    def __getitem__(self, index: Any):
        if index == 1:
            raise InputError("gone")
        return super().__getitem__(index)


def test_what_is_saved_is_read_and_images_that_are_gone_are_left_out(tmp_path: Path):
    source, maps = Faulty(3, 2, (32, 48)), {}
    for i in (2, 1, 0):
        label = Scenes(3, 2, (32, 48))[i]["label"]
        maps[i] = (label, 1 - np.minimum(label, 1))
    gallery.save(tmp_path, maps, source, COLORS)
    first = (tmp_path / gallery.GALLERY).read_bytes()
    images, colors = gallery.read(tmp_path / gallery.GALLERY)
    assert [image.name for image in images] == ["scene_000002", "scene_000000"]
    np.testing.assert_array_equal(images[0].label, maps[2][0])
    np.testing.assert_array_equal(images[0].pred, maps[2][1])
    np.testing.assert_array_equal(colors, COLORS)
    with Image.open(io.BytesIO(images[0].jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (48, 32))
    gallery.save(tmp_path, maps, source, COLORS)
    assert (tmp_path / gallery.GALLERY).read_bytes() == first
