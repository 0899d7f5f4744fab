"""The pictures of a result: the worst, the median and the best images, in all and by class.

Which they are is known only after the last image. So the label and the prediction of every image
are kept, reduced and compressed (some 10 kB), and the images of those chosen are read again.
"""

import io
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from segret_jax.data.sources import Samples
from segret_jax.errors import InputError
from segret_jax.evaluation.pixel_counts import PixelCounts
from segret_jax.files import atomic_write, damage_as_input_errors, disk_errors_as_input_errors
from segret_jax.visualize.pictures import encode_jpeg

GALLERY = "gallery.npz"
SIDE = 480  # pixels of the longer side
NUM_OVERALL = 4  # worst, median and best images each
MAX_IMAGES = 60
QUALITY = 80  # of JPEG
READERS = 4

LabelMap = UInt8[np.ndarray, "_ _"]
Maps = tuple[LabelMap, LabelMap]  # label, prediction


@dataclass(frozen=True)
class GalleryImage:
    """An image (JPEG) with its label and prediction, all of one size."""

    name: str
    jpeg: bytes
    label: LabelMap
    pred: LabelMap


class ReducedMaps:
    """The labels and predictions of all images, reduced. Threads may add in any order."""

    def __init__(self) -> None:
        self._maps: dict[int, tuple[tuple[int, int], bytes]] = {}

    def add(self, index: int, label: LabelMap, pred: LabelMap) -> None:
        """Keep the maps of image `index`."""
        maps = np.stack([reduce_map(label), reduce_map(pred)])
        self._maps[index] = maps.shape[1:], zlib.compress(maps.tobytes(), level=1)

    def to_bytes(self, indices: Sequence[int]) -> bytes:
        """Return the maps of those of `indices` that were added here, for `merge`."""
        content = io.BytesIO()
        own = {str(i): self._get(i) for i in indices if i in self._maps}
        np.savez(content, allow_pickle=False, **own)
        return content.getvalue()

    def _get(self, index: int) -> UInt8[np.ndarray, "2 _ _"]:
        shape, content = self._maps[index]
        return np.frombuffer(zlib.decompress(content), np.uint8).reshape(2, *shape)


def merge(contents: Sequence[bytes], indices: Sequence[int]) -> dict[int, Maps]:
    """Return the maps by index, in the order of `indices`, from what `to_bytes` returned."""
    found: dict[int, np.ndarray] = {}
    for content in contents:
        with np.load(io.BytesIO(content)) as arrays:
            found |= {int(key): arrays[key] for key in arrays.files}
    return {i: (found[i][0], found[i][1]) for i in indices}


def reduce_map(label_map: LabelMap) -> LabelMap:
    """Return a map whose longer side is at most `SIDE`; ids are not mixed."""
    image = Image.fromarray(label_map)
    return np.asarray(image.resize(reduced_size(*image.size), Image.Resampling.NEAREST))


def reduced_size(width: int, height: int) -> tuple[int, int]:
    """Return (width, height) with the longer side at most `SIDE`."""
    scale = min(1.0, SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def scores_by_image(images: PixelCounts) -> Float64[np.ndarray, "n _"]:
    """Return each image's IoU of each class that its label has, else nan; last, its mIoU."""
    iou = images.iou
    labeled = np.where(images.label > 0, iou, np.nan)
    return np.concatenate([labeled, images.mean_iou[:, None]], axis=1)


def ranking(scores: Float64[np.ndarray, " n"], weights: np.ndarray) -> list[int]:
    """Return the images that have a score, worst first; of equal ones, the largest weight first."""
    known = np.flatnonzero(~np.isnan(scores))
    return known[np.lexsort((known, -weights[known], scores[known]))].tolist()


def choose(images: PixelCounts) -> list[int]:
    """Choose up to `MAX_IMAGES` images to show, the most important first.

    First the worst, median and best by mIoU; then the worst of each class, the best of each and
    the median of each, beginning with the class of the lowest IoU.
    """
    scores = scores_by_image(images)
    total = images.total()
    order = np.argsort(total.iou, kind="stable")[: np.count_nonzero(total.label)]
    overall = ranking(scores[:, -1], images.label.sum(1))
    by_class = [r for k in order if (r := ranking(scores[:, k], images.label[:, k]))]
    middle = max(0, (len(overall) - NUM_OVERALL) // 2)
    chosen = [*overall[:NUM_OVERALL], *overall[::-1][:NUM_OVERALL]]
    chosen += overall[middle : middle + NUM_OVERALL]
    chosen += [ranked[0] for ranked in by_class] + [ranked[-1] for ranked in by_class]
    chosen += [ranked[len(ranked) // 2] for ranked in by_class]
    return list(dict.fromkeys(chosen))[:MAX_IMAGES]


def save(
    folder: Path, maps: dict[int, Maps], source: Samples, colors: UInt8[np.ndarray, "k 3"]
) -> None:
    """Write gallery.npz into `folder`; images that can no longer be read are left out.

    Args:
        folder: The folder of the result.
        maps: Labels and predictions by index, the most important first.
        source: The images.
        colors: The colors of the classes.

    Raises:
        InputError: The disk refuses.
    """

    def read_image(index: int) -> tuple[str, bytes] | None:
        try:
            sample = source[index]
        except InputError:  # it was there for the evaluation
            return None
        label, _ = maps[index]
        image = Image.fromarray(sample["image"])
        image = image.resize(label.shape[::-1], Image.Resampling.BOX)
        return sample["name"], encode_jpeg(image, quality=QUALITY)

    with ThreadPoolExecutor(READERS) as threads:
        images = dict(zip(maps, threads.map(read_image, maps), strict=True))
    shown = {index: image for index, image in images.items() if image}
    arrays = {"names": np.array([name for name, _ in shown.values()], str), "colors": colors}
    for i, (index, (_, jpeg)) in enumerate(shown.items()):
        label, pred = maps[index]
        arrays |= {f"image_{i}": np.frombuffer(jpeg, np.uint8)}
        arrays |= {f"label_{i}": label, f"pred_{i}": pred}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with disk_errors_as_input_errors(folder / GALLERY):
        atomic_write(folder / GALLERY, content.getvalue())


def read(file: Path) -> tuple[list[GalleryImage], UInt8[np.ndarray, "k 3"]]:
    """Return what `save` wrote: images, the most important first, and the colors of the classes.

    Raises:
        InputError: The file is missing or damaged.
    """
    with damage_as_input_errors(file), np.load(file) as arrays:
        return [*_images(arrays)], arrays["colors"]


def _images(arrays: np.lib.npyio.NpzFile) -> Iterator[GalleryImage]:
    for i, name in enumerate(arrays["names"].tolist()):
        jpeg, label, pred = (arrays[f"{kind}_{i}"] for kind in ("image", "label", "pred"))
        yield GalleryImage(name, jpeg.tobytes(), label, pred)
