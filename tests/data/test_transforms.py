"""Augmentation against tensors of the released code, few-line oracles, and distributions."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from segret_jax.data import transforms
from segret_jax.data.transforms import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    aligned_size,
    keep_ratio_size,
    normalize,
    pad_to,
    photometric_distortion,
    random_crop,
    random_flip,
    random_resize,
    resize_for_evaluation,
    resize_image,
    resize_label,
)

GOLDENS = Path(__file__).parents[1] / "goldens"


def sample(height: int, width: int, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Make a random pair that cannot be written to: no transform may change its arguments."""
    rng = np.random.default_rng((height, width))
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    label = rng.integers(0, num_classes, (height, width)).astype(np.uint8)
    label[rng.random(label.shape) < 0.1] = 255
    for array in (image, label):
        array.setflags(write=False)
    return image, label


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Make an image whose pixels hold their own (y, x), and a label that holds y + 16 x."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([y, x, y], axis=-1), y + np.uint8(16) * x


def assert_rates(counts: Sequence[int], rates: Sequence[float]) -> None:
    """Chi-square test; a fixed seed decides it once for all."""
    assert stats.chisquare(counts, np.multiply(rates, sum(counts))).pvalue > 0.01


def assert_uniform(values: Sequence[float] | np.ndarray, low: float, high: float) -> None:
    """Kolmogorov-Smirnov test against the uniform distribution in [low, high]."""
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.01


# Goldens


@pytest.mark.parametrize("case", [0, 1, 2])
def test_resize_equals_the_released_code(case: int) -> None:
    golden = np.load(GOLDENS / "resize.npz")
    image, label = golden[f"{case}/image"], golden[f"{case}/label"]
    kept = keep_ratio_size(label.shape, (200, 64))
    kept_label = resize_label(label, kept)
    aligned_label = resize_label(kept_label, aligned_size(kept, 32))
    kept_image = resize_image(image, kept)
    aligned_image = resize_for_evaluation(image, target=(200, 64), size=aligned_label.shape)
    np.testing.assert_array_equal(kept_image, golden[f"{case}/keep/image"])
    np.testing.assert_array_equal(kept_label, golden[f"{case}/keep/label"])
    np.testing.assert_array_equal(aligned_image, golden[f"{case}/aligned/image"])
    np.testing.assert_array_equal(aligned_label, golden[f"{case}/aligned/label"])


def test_color_steps_equal_the_released_code() -> None:
    golden = np.load(GOLDENS / "photometric.npz")
    image = golden["image"]
    image.setflags(write=False)
    np.testing.assert_array_equal(adjust_brightness(image, 17.3), golden["brightness"])
    np.testing.assert_array_equal(adjust_contrast(image, 1.37), golden["contrast"])
    np.testing.assert_array_equal(adjust_saturation(image, 0.61), golden["saturation"])
    np.testing.assert_array_equal(adjust_hue(image, 11), golden["hue"])
    out = adjust_contrast(adjust_brightness(image, 17.3), 1.37)
    np.testing.assert_array_equal(adjust_hue(adjust_saturation(out, 0.61), 11), golden["all"])


# Resize


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((512, 683), (2048, 512), (512, 683)),
        ((364, 500), (2048, 512), (512, 703)),  # 703.3
        ((500, 364), (512, 2048), (703, 512)),  # edges count by length, not by place
        ((1024, 2048), (4096, 1024), (1024, 2048)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the long edge binds: 204.8
        ((10, 5), (5, 5), (5, 3)),  # 2.5 goes up
        ((1, 10000), (2048, 512), (1, 2048)),  # never 0
    ],
)
def test_keep_ratio_size(
    size: tuple[int, int], target: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert keep_ratio_size(size, target) == expected


def test_aligned_size_rounds_up() -> None:
    assert [aligned_size((n, 32), 32)[0] for n in (1, 31, 32, 33, 64)] == [32, 32, 32, 64, 64]
    assert aligned_size((5, 7), 1) == (5, 7)
    assert [aligned_size((n, 32), 32, 193)[0] for n in (1, 193, 225)] == [224, 224, 256]


def test_resize_has_half_pixel_centers_and_no_antialiasing() -> None:
    row = np.array([[0, 100, 200, 40]], np.uint8)
    image = np.repeat(row[..., None], 3, axis=2)
    np.testing.assert_array_equal(resize_image(image, (1, 2))[..., 0], [[50, 120]])
    np.testing.assert_array_equal(resize_image(image, (1, 1))[..., 0], [[150]])
    np.testing.assert_array_equal(resize_label(row, (1, 2)), [[0, 200]])


def test_random_resize_floors_its_target() -> None:
    image, label = sample(10, 10)
    resized, resized_label = random_resize(
        image, label, np.random.default_rng(0), base=(200, 100), ratio_range=(0.999, 0.999)
    )  # short edge 99.9
    assert resized.shape == (99, 99, 3)
    np.testing.assert_array_equal(resized_label, resize_label(label, (99, 99)))
    np.testing.assert_array_equal(resized, resize_image(image, (99, 99)))


def test_random_resize_draws_its_ratio_uniformly() -> None:
    image, label = sample(4, 8)
    rng = np.random.default_rng(0)
    resize = partial(random_resize, base=(400, 200), ratio_range=(0.5, 2.0))
    heights = np.array([len(resize(image, label, rng)[1]) for _ in range(10_000)])
    assert_uniform(heights + 0.5, 100, 400)  # a height is 200 times the ratio, rounded down


# Crop


def test_crop_is_one_window_of_image_and_label() -> None:
    image, label = coordinates(9, 13)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        out, out_label = random_crop(image, label, rng, size=(4, 6))
        top, left = (int(i) for i in out[0, 0, :2])
        np.testing.assert_array_equal(out, image[top : top + 4, left : left + 6])
        np.testing.assert_array_equal(out_label, label[top : top + 4, left : left + 6])
        assert out_label.shape == (4, 6)


def test_crop_offsets_are_uniform() -> None:
    image, label = coordinates(5, 4)
    rng = np.random.default_rng(0)
    crops = (random_crop(image, label, rng, size=(3, 2))[0] for _ in range(10_000))
    counts = Counter(tuple(crop[0, 0, :2].tolist()) for crop in crops)
    assert set(counts) == {(y, x) for y in range(3) for x in range(3)}
    assert_rates(list(counts.values()), [1 / 9] * 9)


def test_crop_larger_than_the_image_keeps_it_whole() -> None:
    image, label = sample(3, 20)
    out, out_label = random_crop(image, label, np.random.default_rng(0), size=(8, 10))
    assert out.shape == (3, 10, 3)
    out, out_label = random_crop(image, label, np.random.default_rng(0), size=(8, 20))
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(out_label, label)


class FirstWindow(np.random.Generator):
    """Draws the offset 0 always and counts the draws."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))
        self.num_draws = 0

    def integers(self, *args: Any, **kwargs: Any) -> Any:
        self.num_draws += 1
        return 0


@pytest.mark.parametrize(
    ("label", "num_windows"),
    [
        ([0, 0, 0, 1, 1], 1),
        ([0, 0, 0, 1], 11),  # 3/4 is already too much
        ([0, 0, 0, 1, 255, 255, 255, 255], 11),  # ignored pixels do not thin it out
        ([0, 0, 1, 255, 255, 255, 255, 255], 1),  # nor do they count as a class that covers most
        ([7, 7, 7, 7], 11),
        ([7, 7, 255, 255], 11),  # one class besides 255
        ([255, 255, 255, 255], 11),
    ],
)
def test_crop_redraws_until_no_class_covers_most(label: list[int], num_windows: int) -> None:
    row = np.array([label], np.uint8)
    image = np.zeros((1, len(label), 3), np.uint8)
    rng = FirstWindow()
    random_crop(image, row, rng, size=(1, len(label)))
    assert rng.num_draws == 2 * num_windows


def test_crop_redraws_ten_times() -> None:
    # One of ten windows has two classes, so it comes out with probability 1 - 0.9^11.
    label = np.array([[0] * 10 + [1]], np.uint8)
    image = np.zeros((1, 11, 3), np.uint8)
    rng = np.random.default_rng(0)
    crops = (random_crop(image, label, rng, size=(1, 2))[1] for _ in range(6000))
    assert np.mean([crop.any() for crop in crops]) == pytest.approx(1 - 0.9**11, abs=0.015)


# Flip


def test_flip_mirrors_image_and_label_half_the_time() -> None:
    image, label = sample(3, 5)
    rng = np.random.default_rng(0)
    num_flipped = 0
    for _ in range(10_000):
        out, out_label = random_flip(image, label, rng)
        flipped = out[0, 0].tolist() == image[0, 4].tolist()
        num_flipped += flipped
        step = -1 if flipped else 1
        assert np.array_equal(out, image[:, ::step])
        assert np.array_equal(out_label, label[:, ::step])
    assert_rates([num_flipped, 10_000 - num_flipped], [1 / 2] * 2)


# Color


@pytest.fixture
def color_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Replace the four color steps by ones that only note their name and amount."""
    calls: list[tuple[str, float]] = []

    def replace(name: str) -> None:
        def note(image: np.ndarray, **amounts: float) -> np.ndarray:
            (amount,) = amounts.values()
            calls.append((name, amount))
            return image

        monkeypatch.setattr(transforms, f"adjust_{name}", note)

    for name in ("brightness", "contrast", "saturation", "hue"):
        replace(name)
    return calls


def test_each_color_step_comes_half_the_time_in_its_order(
    color_calls: list[tuple[str, float]],
) -> None:
    image, _ = sample(1, 1)
    rng = np.random.default_rng(0)
    orders: Counter[tuple[str, ...]] = Counter()
    amounts: dict[str, list[float]] = {}
    for _ in range(10_000):
        color_calls.clear()
        photometric_distortion(image, rng)
        orders[tuple(name for name, _ in color_calls)] += 1
        for name, amount in color_calls:
            amounts.setdefault(name, []).append(amount)

    # 16 choices of steps are equally likely; where contrast is among others that come after
    # brightness, each choice splits evenly into two orders.
    second = ("brightness", "contrast", "saturation", "hue")
    last = ("brightness", "saturation", "hue", "contrast")
    rates: Counter[tuple[str, ...]] = Counter()
    for chosen in range(16):
        names = {name for bit, name in enumerate(second) if chosen >> bit & 1}
        for order in (second, last):
            rates[tuple(n for n in order if n in names)] += 1 / 32
    assert orders.keys() == rates.keys()
    assert_rates([orders[order] for order in rates], list(rates.values()))

    turns = Counter(amounts.pop("hue"))
    assert turns.keys() == set(range(-18, 18))
    assert_rates(list(turns.values()), [1 / 36] * 36)
    assert_uniform(amounts.pop("brightness"), -32, 32)
    assert_uniform(amounts.pop("contrast"), 0.5, 1.5)
    assert_uniform(amounts.pop("saturation"), 0.5, 1.5)
    assert not amounts


def test_color_steps_clip_and_truncate() -> None:
    image = np.array([[[0, 10, 250]]], np.uint8)
    assert adjust_brightness(image, 9.9).tolist() == [[[9, 19, 255]]]
    assert adjust_brightness(image, -9.9).tolist() == [[[0, 0, 240]]]
    assert adjust_contrast(image, 1.19).tolist() == [[[0, 11, 255]]]


def test_hue_and_saturation_work_on_rgb() -> None:
    red = np.array([[[255, 0, 0]]], np.uint8)
    assert adjust_hue(red, 60).tolist() == [[[0, 255, 0]]]  # 120 degrees on: green
    assert adjust_hue(red, -60).tolist() == [[[0, 0, 255]]]
    assert adjust_saturation(red, 0.0).tolist() == [[[255, 255, 255]]]


# Normalize, pad


def test_normalize_is_per_rgb_channel() -> None:
    image, _ = sample(3, 4)
    expected = (image - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    out = normalize(image)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_pad_fills_below_and_right() -> None:
    image, label = sample(2, 3)
    out, out_label = pad_to(normalize(image), label, (4, 7))
    expected, expected_label = np.zeros((4, 7, 3), np.float32), np.full((4, 7), 255)
    expected[:2, :3], expected_label[:2, :3] = normalize(image), label
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(out_label, expected_label)
    with pytest.raises(ValueError, match=r"\(2, 3\) exceeds the padded size \(4, 2\)"):
        pad_to(normalize(image), label, (4, 2))
