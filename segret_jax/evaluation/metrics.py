"""mIoU, mAcc and aAcc from one confusion matrix, accumulated exactly in integers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segret_jax.data.datasets import IGNORE


@dataclass(frozen=True)
class Metrics:
    """Per-class and mean scores, 0 to 1; nan for a class that never occurs.

    IoU = intersection / union; Acc = intersection / label area; aAcc = all intersections / all
    label areas. Means skip nan.
    """

    iou: Float64[np.ndarray, " k"]
    acc: Float64[np.ndarray, " k"]
    all_acc: float

    @property
    def mean_iou(self) -> float:
        return _mean(self.iou)

    @property
    def mean_acc(self) -> float:
        return _mean(self.acc)

    def to_dict(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Return plain values for JSON; nan becomes None."""
        per_class = {
            name: {"IoU": _plain(iou), "Acc": _plain(acc)}
            for name, iou, acc in zip(class_names, self.iou, self.acc, strict=True)
        }
        means = {"mIoU": self.mean_iou, "mAcc": self.mean_acc, "aAcc": self.all_acc}
        return {key: _plain(value) for key, value in means.items()} | {"classes": per_class}


class ConfusionMatrix:
    """Counts of pixels, [label, prediction]; ignored pixels are left out of both."""

    def __init__(self, num_classes: int):
        self.counts: Int64[np.ndarray, "k k"] = np.zeros((num_classes, num_classes), np.int64)

    def add(self, pred: UInt8[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"]) -> None:
        """Count one image. Predictions and labels are class ids; labels may be 255."""
        valid = label != IGNORE
        k = len(self.counts)
        pairs = k * label[valid].astype(np.int64) + pred[valid]
        self.counts += np.bincount(pairs, minlength=k * k).reshape(k, k)

    def metrics(self) -> Metrics:
        """Return the scores of everything counted so far."""
        intersection = np.diag(self.counts)
        label_area, pred_area = self.counts.sum(1), self.counts.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return Metrics(
                iou=intersection / (label_area + pred_area - intersection),
                acc=intersection / label_area,
                all_acc=float(intersection.sum() / label_area.sum()),
            )


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
