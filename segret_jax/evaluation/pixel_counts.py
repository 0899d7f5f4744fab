"""Counts of pixels, from which every score is computed, and the bootstrap over images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

RESAMPLES = 1000
CHUNK = 100  # resamples drawn at once: bounds memory


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of each class: in both label and prediction, in the label, in the prediction."""

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

    def __getitem__(self, images: np.ndarray) -> "PixelCounts":
        return PixelCounts(self.intersection[images], self.label[images], self.pred[images])


def ratio(part: np.ndarray | np.number, whole: np.ndarray | np.number) -> np.ndarray:
    """Divide; nan where `whole` is 0."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)


def mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without the nans; nan where all are nan."""
    known = ~np.isnan(scores)
    return ratio(np.where(known, scores, 0).sum(-1), known.sum(-1))


def resampled_mean_iou(images: PixelCounts, *, seed: int = 0) -> Float64[np.ndarray, " resamples"]:
    """Return mIoU of sets of n images, drawn from these n with replacement.

    Equal n and seed draw equal sets, so two predictions of the same images can be compared set by
    set. Sums are matrix products of integers below 2**53, exact in float64.

    Args:
        images: The pixel counts of each image.
        seed: The seed of the draws.
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
    """Return the middle 95% of the samples (percentile bootstrap); nan if there are none.

    It estimates how the score varies with other images of the same kind. It does not include the
    variation between trainings, it is too narrow for images that are not independent (frames of a
    video), and it is rough below some 50 images or for a class that occurs in few of them.
    """
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
