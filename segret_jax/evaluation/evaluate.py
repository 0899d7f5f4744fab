"""Evaluation of a predictor on every image of a source, and its results in words."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from segret_jax.data.class_table import IGNORE, ClassTable
from segret_jax.data.prefetch import prefetch
from segret_jax.data.sources import Sample, Source
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Prediction, Predictor, Prepared
from segret_jax.evaluation.metrics import ConfusionAccumulator, Metrics
from segret_jax.evaluation.plan import Plan, Size, make_plan
from segret_jax.parallel import processes

READERS = 4  # threads that decode and resize while the devices are at work

Picture = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, label, prediction


@dataclass(frozen=True)
class Result:
    """Scores, some pictures, and what could not be evaluated."""

    metrics: Metrics
    num_images: int
    num_ties: int
    """Labeled pixels where two classes are as good: what another batch size may turn over."""
    confusion: ConfusionAccumulator
    pictures: list[Picture] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_dict(self, table: ClassTable) -> dict[str, Any]:
        """Return plain values for metrics.json; `complete` is false if an image was left out."""
        return {
            **self.metrics.to_dict(table.class_names),
            "num_images": self.num_images,
            "num_ties": self.num_ties,
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
    detailed: bool = False,
    skip_faulty: bool = False,
    announce: Callable[[str], None] | None = None,
    on_prediction: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
    canceled: Callable[[], bool] = lambda: False,
) -> Result | None:
    """Predict every image at its own size and compare with the untouched label.

    A faulty image raises InputError, or with `skip_faulty` is left out and named in the result.
    `announce` is told before the start what will be needed. `on_prediction(name, image, pred)`
    sees each, in the order of the plan; None is returned once `canceled()`.

    Of several processes each predicts a share of the images, and all return the scores of all; the
    pictures are of a process's own share, as is what `on_prediction` sees.
    """
    share = range(jax.process_index(), len(source), jax.process_count())
    confusion = ConfusionAccumulator(len(source), table.num_classes, detailed=detailed)
    reader = _Reader(source, share, predictor, skip_faulty=skip_faulty)
    plan = make_plan(reader.sizes, predictor.config, predictor.batch_size, stride=predictor.stride)
    if announce and plan.batches:
        announce(f"{plan.describe()}; {predictor.forecast(plan)}")
    pictured = _spread(share, num_pictures)
    pictures, num_ties, stopped = {}, 0, False

    def score(done: _Predicted) -> _Predicted:
        confusion.add(done.index, done.prediction.label_map, done.sample["label"])
        return done

    scored = prefetch(score, _predictions(predictor, reader, plan), workers=2, ahead=2)
    total = sum(map(len, plan.batches))
    bar = tqdm(
        scored, "evaluate", total, unit="image", leave=False, mininterval=1,
        disable=not processes.is_primary(),
    )  # fmt: skip
    for done in bar:
        if stopped := canceled():
            break
        image, label, pred = done.sample["image"], done.sample["label"], done.prediction.label_map
        num_ties += int((done.prediction.tied & (label != IGNORE)).sum())
        if done.index in pictured:
            pictures[done.index] = (image, label, pred)
        if on_prediction:
            on_prediction(done.sample["name"], image, pred)
    scored.close()  # waits for what is being counted
    found = {"stopped": stopped, "num_ties": num_ties, "faults": reader.faults}
    return _result_of_all(found, confusion, [pictures[i] for i in sorted(pictures)])


def _result_of_all(
    found: dict[str, Any], confusion: ConfusionAccumulator, pictures: list[Picture]
) -> Result | None:
    """Join what each process has found; None if any was told to stop."""
    told = [json.loads(text) for text in processes.gather(json.dumps(found).encode())]
    if any(one["stopped"] for one in told):
        return None
    confusion.merge(processes.gather(confusion.to_bytes()))
    # JSON has made text of the images' numbers.
    faults = {int(i): fault for one in told for i, fault in one["faults"].items()}
    return Result(
        metrics=confusion.metrics(),
        num_images=int(confusion.counted.sum()),
        num_ties=sum(one["num_ties"] for one in told),
        confusion=confusion,
        pictures=pictures,
        faults=[faults[i] for i in sorted(faults)],
    )


def _spread(share: range, count: int) -> set[int]:
    """Choose images from all over the set: neighbors in a video look alike."""
    if not share:
        return set()
    return {share[i] for i in np.linspace(0, len(share) - 1, count).astype(int)}


class _Reader:
    """Reads images and readies them for the network; notes or raises their faults."""

    def __init__(self, source: Source, indices: range, predictor: Predictor, *, skip_faulty: bool):
        self.source = source
        self.predictor = predictor
        self.skip_faulty = skip_faulty
        self.faults: dict[int, str] = {}
        self.sizes: dict[int, Size] = {}
        for index in indices:
            with self._noting_faults(index):
                self.sizes[index] = source.size(index)

    def read(self, index: int) -> tuple[Sample | None, Prepared]:
        """Return the sample, or None and a black image in the place of a faulty one.

        So it does not depend on the others in which place of a batch an image goes.
        """
        with self._noting_faults(index):
            sample = self.source[index]
            return sample, self.predictor.prepare(sample["image"])
        return None, self.predictor.prepare(np.zeros((*self.sizes[index], 3), np.uint8))

    @contextmanager
    def _noting_faults(self, index: int) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if not self.skip_faulty:
                raise
            self.faults[index] = str(error)


@dataclass(frozen=True)
class _Predicted:
    index: int
    sample: Sample
    prediction: Prediction


def _predictions(predictor: Predictor, reader: _Reader, plan: Plan) -> Iterator[_Predicted]:
    """Predict batch after batch, while threads read the next images."""
    order = itertools.chain.from_iterable(plan.batches)
    images = prefetch(reader.read, order, workers=READERS, ahead=READERS + predictor.batch_size)

    def predict(indices: list[int]) -> list[_Predicted]:
        samples, inputs = zip(*itertools.islice(images, len(indices)), strict=True)
        predicted = zip(indices, samples, predictor.predict(inputs), strict=True)
        return [_Predicted(*one) for one in predicted if one[1] is not None]

    return itertools.chain.from_iterable(prefetch(predict, plan.batches, workers=1, ahead=1))
