"""The generated street scenes: reproducible, exact, balanced, and not solvable by a shortcut."""

import json
import zlib
from importlib import resources

import numpy as np
import pytest

from segret_jax.data.synthetic import Label, SyntheticSource, render_scene

NUM_CLASSES = len(Label)
SIZE = (128, 160)

# Bounds of each class's mean share of the pixels, and the least share of scenes that show it.
SHARES = {
    Label.SKY: (0.08, 0.20),
    Label.BUILDING: (0.20, 0.42),
    Label.ROAD: (0.22, 0.40),
    Label.PAVEMENT: (0.04, 0.12),
    Label.VEHICLE: (0.05, 0.10),
    Label.PERSON: (0.01, 0.03),
    Label.POLE: (0.015, 0.035),
    Label.VEGETATION: (0.05, 0.15),
}


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray]:
    """Sixty scenes: images [60, h, w, 3] as float and labels [60, h, w]."""
    images, labels = zip(*(render_scene(1, index, SIZE) for index in range(60)), strict=True)
    return np.stack(images).astype(np.float32), np.stack(labels).astype(np.int64)


def class_ious(predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    pairs = (label * NUM_CLASSES + predicted).ravel()
    confusion = np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
    hits = np.diag(confusion)
    return hits / (confusion.sum(axis=0) + confusion.sum(axis=1) - hits)


def test_scene_is_uint8_of_the_asked_size():
    image, label = render_scene(0, 0, (96, 128))
    assert image.shape == (96, 128, 3)
    assert label.shape == (96, 128)
    assert image.dtype == label.dtype == np.uint8


def test_scene_depends_on_its_arguments_only():
    first, other = render_scene(7, 3, SIZE), render_scene(7, 4, SIZE)
    again = render_scene(7, 3, SIZE)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.mean(first[1] != other[1]) > 0.05
    assert np.mean(first[1] != render_scene(8, 3, SIZE)[1]) > 0.05


def test_label_is_the_committed_one():
    # A change of this number changes every published figure of the demo.
    assert zlib.crc32(render_scene(0, 0, SIZE)[1].tobytes()) == 3170426593


@pytest.mark.parametrize("size", [(32, 32), (32, 200), (200, 32), (96, 128), (256, 320)])
def test_any_size_shows_sky_above_and_ground_below(size):
    _, label = render_scene(2, 5, size)
    assert label.max() < NUM_CLASSES
    assert (label[: size[0] // 10] != Label.ROAD).all()
    assert np.isin(label[-1], (Label.ROAD, Label.PAVEMENT)).mean() > 0.3


@pytest.mark.parametrize("index", range(3))
def test_sizes_of_one_shape_show_the_same_scene(index):
    small, large = (render_scene(0, index, size)[1] for size in ((128, 160), (256, 320)))
    votes = np.stack([large[row::2, column::2] for row in (0, 1) for column in (0, 1)])
    assert np.mean((votes == small).any(axis=0)) > 0.97


def test_classes_are_balanced(scenes):
    _, labels = scenes
    counts = np.stack([np.bincount(label.ravel(), minlength=NUM_CLASSES) for label in labels])
    assert counts.shape == (60, NUM_CLASSES)
    shares = counts / labels[0].size
    for label, (low, high) in SHARES.items():
        assert low < shares[:, label].mean() < high, label.name
        assert np.mean(shares[:, label] > 0.002) > 0.8, label.name


def test_edges_of_the_label_are_edges_of_the_image(scenes):
    images, labels = scenes
    step = np.abs(np.diff(images, axis=2)).sum(axis=-1)
    edge = np.diff(labels, axis=2) != 0
    assert step[edge].mean() > 2.5 * step[~edge].mean()
    # A label moved by two pixels no longer fits: exactness is to the pixel.
    moved = np.roll(edge, 2, axis=2)
    assert step[edge].mean() > 1.5 * step[moved & ~edge].mean()


def test_color_alone_does_not_decide(scenes):
    images, labels = scenes
    means = np.stack([images[:40][labels[:40] == label].mean(axis=0) for label in Label])
    distance = np.stack([((images[40:] - mean) ** 2).sum(axis=-1) for mean in means])
    assert class_ious(distance.argmin(axis=0), labels[40:]).mean() < 0.5


def test_place_alone_does_not_decide(scenes):
    _, labels = scenes
    votes = np.stack([(labels[:40] == label).sum(axis=0) for label in Label])
    guess = np.broadcast_to(votes.argmax(axis=0), labels[40:].shape)
    assert class_ious(guess, labels[40:]).mean() < 0.5


def test_source_holds_the_scenes_of_its_seed():
    source = SyntheticSource(seed=3, num_images=4, size=(48, 64))
    item = source[np.int64(2)]
    image, label = render_scene(3, 2, (48, 64))
    assert len(source) == 4
    assert item["name"] == "scene_000002"
    np.testing.assert_array_equal(item["image"], image)
    np.testing.assert_array_equal(item["label"], label)


@pytest.mark.parametrize("index", [4, -1])
def test_source_rejects_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=str(index)):
        SyntheticSource(seed=0, num_images=4, size=(48, 64))[index]


@pytest.mark.parametrize("size", [(31, 64), (64, 31)])
def test_too_small_a_size_is_rejected(size):
    with pytest.raises(ValueError, match="31"):
        render_scene(0, 0, size)
    with pytest.raises(ValueError, match="31"):
        SyntheticSource(seed=0, num_images=1, size=size)


def test_class_table_names_the_labels():
    table = resources.files("segret_jax.data") / "class_tables" / "synthetic.json"
    classes = json.loads(table.read_text())["classes"]
    assert [entry["id"] for entry in classes] == list(range(NUM_CLASSES))
    assert [entry["name"].upper() for entry in classes] == [label.name for label in Label]
    assert len({entry["color"] for entry in classes}) == NUM_CLASSES
