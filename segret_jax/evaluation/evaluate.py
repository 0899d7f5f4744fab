"""Evaluation of a predictor on every image of a source, and its results in words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from segret_jax.data.datasets import ClassTable
from segret_jax.data.sources import Source
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.metrics import ConfusionMatrix, Metrics

Picture = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, label, prediction


@dataclass(frozen=True)
class Result:
    """Scores, some pictures, and what could not be evaluated."""

    metrics: Metrics
    num_images: int
    pictures: list[Picture] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_dict(self, table: ClassTable) -> dict[str, Any]:
        """Return plain values for metrics.json; `complete` is false if an image was left out."""
        return {
            **self.metrics.to_dict(table.class_names),
            "num_images": self.num_images,
            "complete": not self.faults,
            "faults": self.faults,
        }

    def summary(self) -> str:
        """Return the scores in one line."""
        m = self.metrics
        incomplete = f"  INCOMPLETE: {len(self.faults)} images left out" if self.faults else ""
        return (
            f"mIoU {100 * m.mean_iou:.2f}  mAcc {100 * m.mean_acc:.2f}  "
            f"aAcc {100 * m.all_acc:.2f}  ({self.num_images} images){incomplete}"
        )

    def per_class(self, table: ClassTable) -> str:
        """Return a Markdown table of IoU and Acc in percent, worst class first."""
        width = max(map(len, table.class_names))
        order = np.argsort(self.metrics.iou)  # nan, a class that never occurs, comes last
        lines = [f"| {'class':<{width}} |   IoU |   Acc |", f"| {'-' * width} | ----: | ----: |"]
        for i in order:
            iou, acc = (
                "—" if np.isnan(score) else f"{100 * score:.2f}"
                for score in (self.metrics.iou[i], self.metrics.acc[i])
            )
            lines.append(f"| {table.class_names[i]:<{width}} | {iou:>5} | {acc:>5} |")
        return "\n".join(lines)


def evaluate(
    predictor: Predictor,
    source: Source,
    table: ClassTable,
    *,
    num_pictures: int = 0,
    skip_faulty: bool = False,
    on_prediction: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Result | None:
    """Predict every image at its own size and compare with the untouched label.

    A faulty image raises InputError, or with `skip_faulty` is left out and named in the result.
    `on_prediction(name, image, pred)` sees each; None is returned once `cancelled()`.
    """
    matrix = ConfusionMatrix(table.num_classes)
    pictures: list[Picture] = []
    faults: list[str] = []
    # Spread over the set: neighbours in a video look alike.
    pictured = set(np.linspace(0, len(source) - 1, num_pictures).astype(int).tolist())
    for index in tqdm(range(len(source)), "evaluate", unit="image", leave=False, mininterval=1):
        if cancelled():
            return None
        try:
            sample = source[index]
        except InputError as error:
            if not skip_faulty:
                raise
            faults.append(str(error))
            continue
        image, label = sample["image"], sample["label"]
        pred = predictor.label_map(image)
        matrix.add(pred, label)
        if index in pictured:
            pictures.append((image, label, pred))
        if on_prediction:
            on_prediction(sample["name"], image, pred)
    return Result(matrix.metrics(), len(source) - len(faults), pictures, faults)
