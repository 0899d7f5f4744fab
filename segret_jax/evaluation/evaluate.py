"""Evaluation of a predictor on every image of a source."""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from segret_jax.data.class_table import IGNORE, ClassTable
from segret_jax.data.prefetch import prefetch
from segret_jax.data.sources import Sample, Source
from segret_jax.data.transforms import use_one_opencv_thread
from segret_jax.errors import InputError
from segret_jax.evaluation import gallery
from segret_jax.evaluation.inference import Prediction, Predictor, Prepared
from segret_jax.evaluation.metrics import ConfusionAccumulator, Metrics
from segret_jax.evaluation.padding import Padding
from segret_jax.evaluation.plan import Plan, Size, choose_padding, make_plan
from segret_jax.parallel import processes

READERS = 4  # threads that decode and resize while the devices are at work

Picture = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, label, prediction
Predicted = tuple[int, Sample, Prediction]  # by the image's index


@dataclass(frozen=True)
class Result:
    """Scores, some pictures, and the errors of images that could not be read."""

    metrics: Metrics
    num_images: int
    num_ties: int
    """Labeled pixels where two classes tie: another batch size may change these."""
    confusion: ConfusionAccumulator
    num_stretched: int = 0
    """Images with a side that was stretched to the shortest that the network takes."""
    pictures: list[Picture] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    reduced_maps: dict[int, gallery.Maps] = field(default_factory=dict)
    """Reduced label and prediction of the images to show, by index; see `evaluation.gallery`."""

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
            scores = self.metrics.iou[i], self.metrics.acc[i]
            iou, acc = ("—" if np.isnan(x) else f"{100 * x:.2f}" for x in scores)
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

    Each of several processes predicts a share of the images, and all return the scores of all.
    Pictures and calls of `on_prediction` are of a process's own share.

    Args:
        predictor: The model.
        source: The images and labels.
        table: The classes.
        num_pictures: The number of images to keep in the result, from all over the set.
        detailed: Whether to add boundary IoU and IoU by size, which take longer.
        skip_faulty: Whether to leave out images that cannot be read, named in the result.
        announce: A function called before the start with the plan, the memory and the time needed.
        on_prediction: A function called with the name, the image and the prediction of each image,
            in the order of the plan.
        canceled: A function asked after each image whether to stop.

    Returns:
        The result, or None if any process was canceled.

    Raises:
        InputError: An image cannot be read, and `skip_faulty` is false.
    """
    use_one_opencv_thread()
    own = range(jax.process_index(), len(source), jax.process_count())
    confusion = ConfusionAccumulator(len(source), table.num_classes, detailed=detailed)
    reader = _Reader(source, own, predictor, skip_faulty=skip_faulty)
    plan = _plan(predictor, reader.sizes)
    if announce and plan.batches:
        announce(f"{plan.describe()}; {predictor.forecast(plan)}")
    spread = np.linspace(0, len(own) - 1, num_pictures).astype(int)  # neighbors may look alike
    pictured = {own[i] for i in spread} if own else set()
    pictures, num_ties, stopped = {}, 0, False
    reduced = gallery.ReducedMaps()

    def count(predicted: Predicted) -> Predicted:
        index, sample, prediction = predicted
        confusion.add(index, prediction.label_map, sample["label"])
        reduced.add(index, sample["label"], prediction.label_map)
        return predicted

    counted = prefetch(count, _predictions(predictor, reader, plan), workers=2, buffer_size=2)
    total, hidden = sum(map(len, plan.batches)), not processes.is_primary()
    bar = tqdm(counted, "evaluate", total, leave=False, mininterval=1, unit="image", disable=hidden)
    for index, sample, prediction in bar:
        if stopped := canceled():
            break
        image, label, pred = sample["image"], sample["label"], prediction.label_map
        num_ties += int((prediction.tied & (label != IGNORE)).sum())
        if index in pictured:
            pictures[index] = (image, label, pred)
        if on_prediction:
            on_prediction(sample["name"], image, pred)
    counted.close()  # waits for the images that are being counted
    found = {
        "stopped": stopped,
        "num_ties": num_ties,
        "num_stretched": plan.num_stretched,
        "faults": [*reader.faults.items()],
    }
    return _result_of_all(found, confusion, reduced, [pictures[i] for i in sorted(pictures)])


def _plan(predictor: Predictor, sizes: Mapping[int, Size]) -> Plan:
    """Plan for this process's images; the padded sizes depend on those of all processes."""
    padding: Padding = {}
    if predictor.takes_size:
        every = map(json.loads, processes.gather(json.dumps([*sizes.values()]).encode()))
        all_sizes = sorted((height, width) for own in every for height, width in own)
        padding = choose_padding(all_sizes, predictor.config, min_side=predictor.min_side)
    return make_plan(
        sizes, predictor.config, predictor.batch_size,
        stride=predictor.stride, min_side=predictor.min_side, padding=padding,
    )  # fmt: skip


def _result_of_all(
    found: dict[str, Any], confusion: ConfusionAccumulator, reduced: gallery.ReducedMaps,
    pictures: list[Picture],
) -> Result | None:  # fmt: skip
    """Merge the results of all processes; None if any was canceled."""
    every = [json.loads(text) for text in processes.gather(json.dumps(found).encode())]
    if any(one["stopped"] for one in every):
        return None
    confusion.merge(processes.gather(confusion.to_bytes()))
    shown = np.flatnonzero(confusion.counted)[gallery.choose(confusion.images)].tolist()
    return Result(
        metrics=confusion.metrics(),
        num_images=int(confusion.counted.sum()),
        num_ties=sum(one["num_ties"] for one in every),
        confusion=confusion,
        num_stretched=sum(one["num_stretched"] for one in every),
        pictures=pictures,
        faults=[fault for _, fault in sorted(fault for one in every for fault in one["faults"])],
        reduced_maps=gallery.merge(processes.gather(reduced.to_bytes(shown)), shown),
    )


class _Reader:
    """Reads and prepares images; records or raises their errors."""

    def __init__(self, source: Source, indices: range, predictor: Predictor, *, skip_faulty: bool):
        self.source, self.predictor, self.skip_faulty = source, predictor, skip_faulty
        self.faults: dict[int, str] = {}
        self.sizes: dict[int, Size] = {}
        for index in indices:
            with self._recording_faults(index):
                self.sizes[index] = source.size(index)

    def read(self, index: int, *, padding: Padding) -> tuple[Sample | None, Prepared]:
        """Return the sample and its input, or None and a black image instead of a faulty one.

        An image's position in a batch must not depend on the others.
        """
        with self._recording_faults(index):
            sample = self.source[index]
            return sample, self.predictor.prepare(sample["image"], padding=padding)
        black = np.zeros((*self.sizes[index], 3), np.uint8)
        return None, self.predictor.prepare(black, padding=padding)

    @contextmanager
    def _recording_faults(self, index: int) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if not self.skip_faulty:
                raise
            self.faults[index] = str(error)


def _predictions(predictor: Predictor, reader: _Reader, plan: Plan) -> Iterator[Predicted]:
    """Predict batch after batch, while threads read the next images."""
    order = itertools.chain.from_iterable(plan.batches)
    read = functools.partial(reader.read, padding=plan.padding)
    images = prefetch(read, order, workers=READERS, buffer_size=READERS + predictor.batch_size)

    def predict(indices: list[int]) -> list[Predicted]:
        samples, inputs = zip(*itertools.islice(images, len(indices)), strict=True)
        predicted = zip(indices, samples, predictor.predict(inputs), strict=True)
        return [one for one in predicted if one[1] is not None]

    return itertools.chain.from_iterable(prefetch(predict, plan.batches, workers=1, buffer_size=1))
