"""Scores of a set of images, from pixel counts in integers."""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segret_jax.data.class_table import IGNORE
from segret_jax.evaluation import pixel_counts
from segret_jax.evaluation.detailed_counts import SIZES, boundary_counts, counts_by_size
from segret_jax.evaluation.pixel_counts import PixelCounts, mean, ratio
from segret_jax.files import nan_to_none


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Scores from 0 to 1, per class and over all; nan for a class that never occurs.

    IoU = intersection / union; Acc = intersection / labeled pixels; Dice = 2 intersection /
    (labeled + predicted pixels); aAcc = all intersections / all labeled pixels; fwIoU = mean of
    IoU weighted by labeled pixels. Other means are plain and skip nan.
    """

    pixels: PixelCounts
    interval: tuple[float, float]
    """Of mIoU, 95%; `pixel_counts.interval` says what it means."""
    boundary: PixelCounts | None = None
    by_size: PixelCounts | None = None  # [size, k]

    @property
    def iou(self) -> Float64[np.ndarray, " k"]:
        return self.pixels.iou

    @property
    def acc(self) -> Float64[np.ndarray, " k"]:
        return ratio(self.pixels.intersection, self.pixels.label)

    @property
    def dice(self) -> Float64[np.ndarray, " k"]:
        return ratio(2 * self.pixels.intersection, self.pixels.label + self.pixels.pred)

    @property
    def mean_iou(self) -> float:
        return float(self.pixels.mean_iou)

    @property
    def mean_acc(self) -> float:
        return float(mean(self.acc))

    @property
    def all_acc(self) -> float:
        return float(ratio(self.pixels.intersection.sum(), self.pixels.label.sum()))

    def to_dict(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Return plain values for JSON; nan becomes None."""
        labeled = self.pixels.label
        weighted = np.where(labeled > 0, labeled * self.iou, 0).sum()
        means = {"mIoU": self.mean_iou, "mAcc": self.mean_acc, "aAcc": self.all_acc}
        means |= {"fwIoU": float(ratio(weighted, labeled.sum())), "mDice": float(mean(self.dice))}
        per_class = {"IoU": self.iou, "Acc": self.acc, "Dice": self.dice}
        if self.boundary:
            means["mBoundaryIoU"] = float(self.boundary.mean_iou)
            per_class["BoundaryIoU"] = self.boundary.iou
        if self.by_size:
            scores = zip(SIZES, self.by_size.mean_iou, strict=True)
            means |= {f"mIoU_{size}": float(score) for size, score in scores}
        classes = {
            name: {key: nan_to_none(float(scores[i])) for key, scores in per_class.items()}
            for i, name in enumerate(class_names)
        }
        return {
            **{key: nan_to_none(value) for key, value in means.items()},
            "mIoU_interval": [nan_to_none(end) for end in self.interval],
            "classes": classes,
        }


class ConfusionAccumulator:
    """Pixel counts of a set of images; ignored pixels count neither in label nor in prediction.

    `counts` is the confusion matrix [label, prediction]; `others` are the pixels of each label that
    are predicted as no class at all, by an output beyond the classes. The pixel counts of each
    image are kept, too. Several threads may add images in any order: the sums are the same.
    """

    def __init__(self, num_images: int, num_classes: int, *, detailed: bool = False):
        """Start at zero; `detailed` adds boundary IoU and IoU by size, which take longer."""
        k = num_classes
        self.counts: Int64[np.ndarray, "k k"] = np.zeros((k, k), np.int64)
        self.others: Int64[np.ndarray, " k"] = np.zeros(k, np.int64)
        self.counted = np.zeros(num_images, bool)
        self._images = np.zeros((3, num_images, k), np.int64)  # the rows of PixelCounts
        self._detailed = detailed
        self._boundary = np.zeros((3, k), np.int64)
        self._by_size = np.zeros((3, len(SIZES), k), np.int64)
        self._lock = threading.Lock()

    def add(
        self, index: int, pred: UInt8[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"]
    ) -> None:
        """Count image `index`.

        Args:
            index: The index of the image in the set.
            pred: Class ids; those from the number of classes on are wrong wherever they are.
            label: Class ids, or 255 where pixels are ignored.

        Raises:
            ValueError: The image was counted before.
        """
        k = len(self.counts)
        valid = label != IGNORE
        pairs = (k + 1) * label[valid].astype(np.int64) + np.minimum(pred[valid], k)
        counts = np.bincount(pairs, minlength=k * (k + 1)).reshape(k, k + 1)
        counts, others = counts[:, :k], counts[:, k]
        judged = np.where(valid, pred, np.uint8(IGNORE))
        boundary = boundary_counts(judged, label, k) if self._detailed else 0
        by_size = counts_by_size(judged, label, k) if self._detailed else 0
        with self._lock:
            if self.counted[index]:
                raise ValueError(f"image {index} would be counted twice")
            self.counted[index] = True
            self.counts += counts
            self.others += others
            self._images[:, index] = counts.diagonal(), counts.sum(1) + others, counts.sum(0)
            self._boundary += boundary
            self._by_size += by_size

    def to_bytes(self) -> bytes:
        """Return the counts for `merge`."""
        stored = io.BytesIO()
        np.savez(stored, *self._counts())
        return stored.getvalue()

    def merge(self, contents: Sequence[bytes]) -> None:
        """Set the counts to the sums of `contents`, each made by `to_bytes` of other images."""
        counts = [np.load(io.BytesIO(content)) for content in contents]
        for i, here in enumerate(self._counts()):
            here[...] = sum(there[f"arr_{i}"] for there in counts)

    def _counts(self) -> list[np.ndarray]:
        return [self.counts, self.others, self.counted, self._images, self._boundary, self._by_size]

    @property
    def images(self) -> PixelCounts:
        """The pixel counts [n, k] of the images counted, by index."""
        return PixelCounts(*self._images[:, self.counted])

    def metrics(self) -> Metrics:
        """Return the scores of everything counted so far."""
        hits = self.counts.diagonal().copy()
        return Metrics(
            pixels=PixelCounts(hits, self.counts.sum(1) + self.others, self.counts.sum(0)),
            interval=pixel_counts.interval(pixel_counts.resampled_mean_iou(self.images)),
            boundary=PixelCounts(*self._boundary) if self._detailed else None,
            by_size=PixelCounts(*self._by_size) if self._detailed else None,
        )
