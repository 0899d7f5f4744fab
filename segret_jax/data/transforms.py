"""Augmentation as in mmsegmentation, as pure functions of (image, label, rng) on numpy arrays.

Images are 8-bit RGB and stay 8-bit until `normalize`; color work follows OpenCV's 8-bit
arithmetic, as the released configurations ran it. Labels hold class ids and 255. No function
changes its arguments, but one that has nothing to do may return them. Sizes are (height, width).

Every random number comes from the given `numpy.random.Generator` in a fixed order.
"""

from functools import cache, partial

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy.random import Generator

from segret_jax.data.class_table import IGNORE
from segret_jax.normalization import MEAN, STD

Image = UInt8[np.ndarray, "h w 3"]
Label = UInt8[np.ndarray, "h w"]
NewImage = UInt8[np.ndarray, "new_h new_w 3"]
NewLabel = UInt8[np.ndarray, "new_h new_w"]
Size = tuple[int, int]
Range = tuple[float, float]

MAX_CLASS_SHARE = 0.75
CROP_REDRAWS = 10
BRIGHTNESS_DELTA = 32.0
CONTRAST_RANGE = (0.5, 1.5)
SATURATION_RANGE = (0.5, 1.5)
HUE_DELTA = 18

# What is done to each pixel alone is looked up in a table of the 256 levels: the same bits, and
# several times as fast.
_LEVELS = np.arange(256, dtype=np.float32)
_NORMALIZED = (_LEVELS[:, None, None] - MEAN) / STD


@cache
def use_one_opencv_thread() -> None:
    """Make OpenCV run in the calling thread alone: one image is too little work to share.

    Once per process and not per image, because OpenCV divides by zero (SIGFPE) where one thread
    sets this while another is at work.
    """
    cv2.setNumThreads(0)


def keep_ratio_size(size: Size, target: Size) -> Size:
    """Return the largest size of `size`'s aspect ratio that fits the target's edges.

    The longer edge of the target bounds the longer side, the shorter the shorter, whichever way
    either lies: (2048, 512) and (512, 2048) mean the same. At least 1 pixel per side.
    """
    scale = min(max(target) / max(size), min(target) / min(size))
    height, width = (max(int(side * scale + 0.5), 1) for side in size)
    return height, width


def aligned_size(size: Size, multiple: int, min_side: int = 1) -> Size:
    """Return `size` with each side rounded up to a multiple of `multiple` from `min_side` on."""
    height, width = (-(-max(side, min_side) // multiple) * multiple for side in size)
    return height, width


def resize_image(image: Image, size: Size) -> NewImage:
    """Resize bilinearly with half-pixel centers, without antialiasing, rounded to 8 bits."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_label(label: Label, size: Size) -> NewLabel:
    """Resize by OpenCV's nearest neighbor, which takes the source pixel floor(i / scale)."""
    return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)


def resize_for_evaluation(image: Image, *, target: Size, size: Size) -> NewImage:
    """Resize to the keep-ratio size within `target`, then once more to `size`.

    Two resizes and not one, because the released evaluation rounds to 8 bits in between.
    """
    return resize_image(resize_image(image, keep_ratio_size(image.shape[:2], target)), size)


def random_resize(
    image: Image, label: Label, rng: Generator, *, base: Size, ratio_range: Range
) -> tuple[NewImage, NewLabel]:
    """Resize to `base` (long, short) times a ratio uniform in [low, high), aspect ratio kept.

    Resizes the whole image, though a crop follows: OpenCV's grid starts at the image's corner, so a
    window resized by itself has other pixels.

    Args:
        image: The RGB image.
        label: Its class ids.
        rng: The source of the ratio.
        base: The (long, short) edge at ratio 1.
        ratio_range: The bounds of the ratio.
    """
    ratio = rng.uniform(*ratio_range)
    size = keep_ratio_size(image.shape[:2], (int(base[0] * ratio), int(base[1] * ratio)))
    return resize_image(image, size), resize_label(label, size)


def random_crop(
    image: Image, label: Label, rng: Generator, *, size: Size
) -> tuple[NewImage, NewLabel]:
    """Cut out a window of at most `size`, never padded, at a uniformly random offset.

    Redraws the offset while the window has fewer than two classes, or one that covers
    `MAX_CLASS_SHARE` or more of its labeled pixels; takes the tenth redraw unchecked.

    Args:
        image: The RGB image.
        label: Its class ids.
        rng: The source of the offsets.
        size: The (height, width) of the window.
    """
    for redraws_left in reversed(range(CROP_REDRAWS + 1)):
        top, left = (
            int(rng.integers(max(side - crop, 0) + 1))
            for side, crop in zip(label.shape, size, strict=True)
        )
        window = np.s_[top : top + size[0], left : left + size[1]]
        if redraws_left == 0 or _is_varied(label[window]):
            break
    return image[window], label[window]


def _is_varied(label: Label) -> bool:
    # In float32, exact up to 2^24 pixels per class; np.bincount takes four times as long.
    counts = cv2.calcHist([label], [0], None, [IGNORE], [0, IGNORE]).astype(np.int64)
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < MAX_CLASS_SHARE)


def random_flip(image: Image, label: Label, rng: Generator) -> tuple[Image, Label]:
    """Mirror left and right with probability 1/2."""
    if rng.random() < 0.5:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


def photometric_distortion(image: Image, rng: Generator) -> Image:
    """Distort brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes second or, with probability 1/2, last. The count of random numbers drawn does
    not depend on their values.
    """
    brightness = partial(adjust_brightness, delta=rng.uniform(-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA))
    contrast = partial(adjust_contrast, factor=rng.uniform(*CONTRAST_RANGE))
    saturation = partial(adjust_saturation, factor=rng.uniform(*SATURATION_RANGE))
    hue = partial(adjust_hue, delta=int(rng.integers(-HUE_DELTA, HUE_DELTA)))
    contrast_second, *applied = rng.random(5) < 0.5
    steps = [(brightness, applied[0]), (saturation, applied[2]), (hue, applied[3])]
    steps.insert(1 if contrast_second else 3, (contrast, applied[1]))
    for step, is_applied in steps:
        if is_applied:
            image = step(image)
    return image


def adjust_brightness(image: Image, delta: float) -> Image:
    """Add `delta` (in units of 0..255), clip, truncate to 8 bits."""
    return cv2.LUT(image, _scaled_and_shifted(1.0, delta))


def adjust_contrast(image: Image, factor: float) -> Image:
    """Multiply by `factor`, clip, truncate to 8 bits."""
    return cv2.LUT(image, _scaled_and_shifted(factor, 0.0))


def adjust_saturation(image: Image, factor: float) -> Image:
    """Multiply the S channel of OpenCV's 8-bit HSV by `factor`, clip, truncate."""
    return _map_hsv(image, 1, _scaled_and_shifted(factor, 0.0))


def adjust_hue(image: Image, delta: int) -> Image:
    """Turn the H channel of OpenCV's 8-bit HSV by `delta` steps of 2 degrees, modulo 180."""
    return _map_hsv(image, 0, ((_LEVELS + delta) % 180).astype(np.uint8))


def _map_hsv(image: Image, channel: int, table: UInt8[np.ndarray, "256"]) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _scaled_and_shifted(scale: float, shift: float) -> UInt8[np.ndarray, "256"]:
    levels = _LEVELS * np.float32(scale) + np.float32(shift)
    return np.clip(levels, 0, 255).astype(np.uint8)


def normalize(image: Image) -> Float32[np.ndarray, "h w 3"]:
    """Subtract `MEAN` and divide by `STD`, in float32."""
    return cv2.LUT(image, _NORMALIZED)


def pad_to(
    image: Float32[np.ndarray, "h w 3"], label: Label, size: Size
) -> tuple[Float32[np.ndarray, "new_h new_w 3"], NewLabel]:
    """Pad a normalized image with 0 and its label with 255, below and on the right, to `size`.

    Args:
        image: The normalized image.
        label: Its class ids.
        size: The (height, width) of the result.

    Raises:
        ValueError: The image exceeds `size`.
    """
    bottom, right = (goal - side for goal, side in zip(size, label.shape, strict=True))
    if bottom < 0 or right < 0:
        raise ValueError(f"image of {label.shape} exceeds the padded size {size}: crop it first")
    if bottom == right == 0:
        return image, label
    edges = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
    image = cv2.copyMakeBorder(image, *edges, value=0)
    return image, cv2.copyMakeBorder(label, *edges, value=IGNORE)


def train_transform(
    image: Image, label: Label, rng: Generator, *, crop: Size, base: Size, ratio_range: Range
) -> tuple[Float32[np.ndarray, "crop_h crop_w 3"], UInt8[np.ndarray, "crop_h crop_w"]]:
    """Augment one pair for training: resize, crop, flip, distort colors, and pad.

    Args:
        image: The RGB image, uint8, of any size.
        label: Class ids and 255, of the same size.
        rng: The source of all random numbers.
        crop: The (height, width) of the result.
        base: The (long, short) edge to which the image is resized at ratio 1.
        ratio_range: The bounds [low, high) of the random ratio.

    Returns:
        Image float32 (normalized) and label uint8, both of size `crop`.
    """
    image, label = random_resize(image, label, rng, base=base, ratio_range=ratio_range)
    image, label = random_crop(image, label, rng, size=crop)
    image, label = random_flip(image, label, rng)
    image = photometric_distortion(image, rng)
    return pad_to(normalize(image), label, crop)
