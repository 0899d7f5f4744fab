"""Counts of pixels, the integers that every score is made of, and the bootstrap over images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

RESAMPLES = 1000
LEVEL = 95  # per cent
CHUNK = 100  # resamples drawn at once: bounds memory


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of each class: in label and prediction at once, in the label, in the prediction."""

    intersection: Int64[np.ndarray, "*sets k"]
    label: Int64[np.ndarray, "*sets k"]
    pred: Int64[np.ndarray, "*sets k"]

    @property
    def union(self) -> Int64[np.ndarray, "*sets k"]:
        return self.label + self.pred - self.intersection

    @property
    def iou(self) -> Float64[np.ndarray, "*sets k"]:
        """Intersection / union; nan where the union is empty."""
        return ratio(self.intersection, self.union)

    @property
    def mean_iou(self) -> Float64[np.ndarray, "*sets"]:
        """Mean of IoU over the classes whose union is not empty; nan where none is."""
        return mean(self.iou)

    def total(self) -> "PixelCounts":
        """Return the sums over the first axis, the images."""
        return PixelCounts(self.intersection.sum(0), self.label.sum(0), self.pred.sum(0))

    def __getitem__(
        self, images: Int64[np.ndarray, " m"] | Bool[np.ndarray, " n"]
    ) -> "PixelCounts":
        return PixelCounts(self.intersection[images], self.label[images], self.pred[images])


def ratio(part: np.ndarray | np.number, whole: np.ndarray | np.number) -> np.ndarray:
    """Divide; nan where `whole` is 0, since no part of nothing can be right or wrong."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)


def mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without the nans; nan where there is nothing else."""
    known = ~np.isnan(scores)
    return ratio(np.where(known, scores, 0).sum(-1), known.sum(-1))


def resampled_mean_iou(images: PixelCounts, *, seed: int = 0) -> Float64[np.ndarray, " resamples"]:
    """Return mIoU of sets of n images, drawn from these n with replacement.

    Equal n and seed draw equal sets, so that two predictions of the same images can be compared
    set by set. Sums are matrix products of integers below 2**53, exact in float64.
    """
    num_images = len(images.label)
    rng, scores = np.random.default_rng(seed), []
    counts = [x.astype(np.float64) for x in (images.intersection, images.label, images.pred)]
    for _ in range(RESAMPLES // CHUNK if num_images else 0):
        drawn = rng.integers(num_images, size=(CHUNK, num_images))
        times = np.stack([np.bincount(row, minlength=num_images) for row in drawn]).astype(float)
        scores.append(PixelCounts(*((times @ x).astype(np.int64) for x in counts)).mean_iou)
    return np.concatenate(scores) if scores else np.zeros(0)


def interval(samples: Float64[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Return the middle 95 % of the samples (percentile bootstrap); nan if there are none.

    It answers how far the score would move had other images of the same kind been labeled. It
    knows nothing of other trainings of the model, it is too narrow where images are not
    independent (frames of a video), and a rough guide below some 50 images or where a class
    occurs in a few of them only.
    """
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.percentile(samples, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
