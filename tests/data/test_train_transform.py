"""The whole augmentation, bit for bit: plain formulas against tables, histograms and OpenCV."""

import colorsys
from functools import partial

import cv2
import numpy as np
import pytest

from segret_jax.data.synthetic import SyntheticSource
from segret_jax.data.transforms import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    normalize,
    pad_to,
    photometric_distortion,
    random_crop,
    random_flip,
    random_resize,
    train_transform,
)
from tests.data.test_transforms import sample

CROP, BASE, RATIOS = (24, 32), (80, 20), (0.5, 2.0)
transform = partial(train_transform, crop=CROP, base=BASE, ratio_range=RATIOS)
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
SCENES = list(map(SyntheticSource(seed=5, num_images=4, size=(80, 110)).__getitem__, range(4)))


# The steps of the augmentation in plain NumPy. Only the resize and the two conversions of color
# are OpenCV's.


def plain_transform(image, label, rng, *, crop, base, ratio_range):
    ratio = rng.uniform(*ratio_range)
    long, short = (int(edge * ratio) for edge in base)
    scale = min(long / max(label.shape), short / min(label.shape))
    height, width = (int(side * scale + 0.5) for side in label.shape)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    image, label = plain_crop(image, label, rng, crop)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    image = plain_distortion(image, rng)
    padded, padded_label = np.zeros((*crop, 3), np.float32), np.full(crop, 255, np.uint8)
    padded[: len(label), : label.shape[1]] = (image.astype(np.float32) - MEAN) / STD
    padded_label[: len(label), : label.shape[1]] = label
    return padded, padded_label


def plain_crop(image, label, rng, crop):
    for attempt in range(11):
        top = rng.integers(max(len(label) - crop[0], 0) + 1)
        left = rng.integers(max(label.shape[1] - crop[1], 0) + 1)
        part = label[top : top + crop[0], left : left + crop[1]]
        ids, counts = np.unique(part[part != 255], return_counts=True)
        if attempt == 10 or (len(ids) > 1 and counts.max() / counts.sum() < 0.75):
            return image[top : top + crop[0], left : left + crop[1]], part


def plain_distortion(image, rng):
    delta, contrast = rng.uniform(-32, 32), rng.uniform(0.5, 1.5)
    saturation, hue = rng.uniform(0.5, 1.5), rng.integers(-18, 18)
    early, brighten, contrasted, saturate, turn = rng.random(5) < 0.5
    if brighten:
        image = plain_linear(image, 1, delta)
    if contrasted and early:
        image = plain_linear(image, contrast, 0)
    if saturate:
        image = plain_saturation(image, saturation)
    if turn:
        image = plain_hue(image, hue)
    if contrasted and not early:
        image = plain_linear(image, contrast, 0)
    return image


def plain_linear(values, scale, shift):
    return np.clip(values * np.float32(scale) + np.float32(shift), 0, 255).astype(np.uint8)


def plain_saturation(image, factor):
    h, s, v = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    return cv2.cvtColor(np.stack([h, plain_linear(s, factor, 0), v], -1), cv2.COLOR_HSV2RGB)


def plain_hue(image, delta):
    h, s, v = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    h = ((h.astype(int) + delta) % 180).astype(np.uint8)
    return cv2.cvtColor(np.stack([h, s, v], -1), cv2.COLOR_HSV2RGB)


@pytest.mark.parametrize(
    ("crop", "base"), [((64, 64), (256, 80)), ((60, 90), (100, 60)), ((33, 47), (600, 90))]
)
def test_fixed_draws_give_the_pixels_of_the_plain_formulas(crop, base):
    for seed in range(40):
        image, label = SCENES[seed % 4]["image"], SCENES[seed % 4]["label"].copy()
        label[:12] = 255
        label[60:] = label[60, 60]  # much of one class: crops are redrawn
        sizes = {"crop": crop, "base": base, "ratio_range": RATIOS}
        rng, plain_rng = np.random.default_rng(seed), np.random.default_rng(seed)
        got = train_transform(image, label, rng, **sizes)
        expected = plain_transform(image, label, plain_rng, **sizes)
        for array, plain_array in zip(got, expected, strict=True):
            np.testing.assert_array_equal(array, plain_array, strict=True)
        assert rng.random() == plain_rng.random()  # the same count of draws


def test_every_level_and_amount_of_the_color_steps_equals_its_formula():
    levels = np.arange(256, dtype=np.uint8)
    image = np.stack([levels, levels[::-1], (7 * levels).astype(np.uint8)], -1)[None]
    np.testing.assert_array_equal(normalize(image), (image.astype(np.float32) - MEAN) / STD)
    rng = np.random.default_rng(0)
    for delta in (*rng.uniform(-32, 32, 200), -32.0, 0.0, 32.0, -0.5):
        np.testing.assert_array_equal(
            adjust_brightness(image, delta), plain_linear(image, 1, delta)
        )
    for factor in (*rng.uniform(0.5, 1.5, 200), 0.0, 1.0, 1.5):
        np.testing.assert_array_equal(
            adjust_contrast(image, factor), plain_linear(image, factor, 0)
        )
        np.testing.assert_array_equal(
            adjust_saturation(image, factor), plain_saturation(image, factor)
        )
    for turn in range(-180, 181):
        np.testing.assert_array_equal(adjust_hue(image, turn), plain_hue(image, turn))


def hsv_of(r: int, g: int, b: int) -> tuple[int, int, int]:
    """OpenCV's 8-bit HSV in integers with 12 binary places: H in 0..179, S and V in 0..255."""
    value, chroma = max(r, g, b), max(r, g, b) - min(r, g, b)
    if chroma == 0:
        return 0, 0, value
    if value == r:
        sixths = g - b
    elif value == g:
        sixths = b - r + 2 * chroma
    else:
        sixths = r - g + 4 * chroma
    hue = (sixths * round((180 << 12) / (6 * chroma)) + (1 << 11)) >> 12
    saturation = (chroma * round((255 << 12) / value) + (1 << 11)) >> 12
    return hue % 180, saturation, value


def test_hue_and_saturation_equal_the_definition_of_hsv():
    """To less than one level: OpenCV truncates or rounds the way back, by the pixel's column."""
    image, _ = sample(20, 40)
    cases = {
        "saturation": (adjust_saturation(image, 1.25), lambda h, s: (h, min(5 * s // 4, 255))),
        "hue": (adjust_hue(image, -11), lambda h, s: ((h - 11) % 180, s)),
    }
    for name, (out, change) in cases.items():
        for at in np.ndindex(image.shape[:2]):
            h, s, v = hsv_of(*image[at].tolist())
            h, s = change(h, s)
            expected = np.multiply(colorsys.hsv_to_rgb(h / 180, s / 255, v / 255), 255)
            assert np.abs(out[at] - expected).max() < 1.001, (name, at)


# Composition


def test_train_transform_composes_the_steps_in_order() -> None:
    image, label = sample(40, 30)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        out, out_label = random_resize(image, label, rng, base=BASE, ratio_range=RATIOS)
        out, out_label = random_crop(out, out_label, rng, size=CROP)
        out, out_label = random_flip(out, out_label, rng)
        expected = pad_to(normalize(photometric_distortion(out, rng)), out_label, CROP)
        result = transform(image, label, np.random.default_rng(seed))
        for got, wanted in zip(result, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_train_transform_depends_on_the_generator_alone() -> None:
    image, label = sample(40, 30)
    first = [transform(image, label, np.random.default_rng(s)) for s in range(4)]
    np.random.seed(1)  # numpy's global state must not matter
    again = [transform(image, label, np.random.default_rng(s)) for s in range(4)]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    assert not any(np.array_equal(first[0][0], other[0]) for other in first[1:])


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 4), (24, 32), (90, 200)])
def test_train_transform_takes_any_size(size: tuple[int, int]) -> None:
    image, label = sample(*size)
    for seed in range(5):
        out, out_label = transform(image, label, np.random.default_rng(seed))
        assert (out.shape, out.dtype) == ((24, 32, 3), np.float32)
        assert (out_label.shape, out_label.dtype) == ((24, 32), np.uint8)
        assert set(np.unique(out_label)) <= set(np.unique(label)) | {255}


def test_train_transform_takes_a_label_that_is_all_ignored() -> None:
    image, _ = sample(20, 20)
    label = np.full((20, 20), 255, np.uint8)
    out, out_label = transform(image, label, np.random.default_rng(0))
    assert (out_label == 255).all()
    assert np.count_nonzero(out) > 0


def test_padding_is_zero_after_normalization() -> None:
    image, label = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)
    double = partial(train_transform, crop=(4, 4), base=(2, 2), ratio_range=(1.0, 1.0))
    for seed in range(5):
        out, out_label = double(image, label, np.random.default_rng(seed))
        assert (out[:2, :2] < -1).all()  # black, normalized, brightened by 32 at most
        assert not out[2:].any()
        assert not out[:, 2:].any()
        assert (out_label[:2, :2] == 0).all()
        assert (out_label[2:] == 255).all()
        assert (out_label[:, 2:] == 255).all()
