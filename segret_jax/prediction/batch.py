"""Prediction of a user's pictures, one after the other."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError, abbreviate
from segret_jax.evaluation.inference import Predictor
from segret_jax.prediction.formats import write
from segret_jax.prediction.inputs import MAX_NAMED, num_frames, read_picture
from segret_jax.prediction.outputs import Outputs
from segret_jax.prediction.segmentation import segment

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left"


@dataclass
class PredictionSummary:
    """The number of predicted pictures, the errors of the others, and those of several frames."""

    count: int = 0
    faults: list[InputError] = field(default_factory=list)
    multi_frame: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Return lines about frames that were not read."""
        names = abbreviate(self.multi_frame, MAX_NAMED)
        return [f"of several frames only the first was read: {names}"] if names else []


def predict_files(
    predictor: Predictor,
    table: ClassTable,
    files: Sequence[Path],
    planned: Sequence[Outputs],
    *,
    names: bool = False,
) -> PredictionSummary:
    """Segment each picture and write its outputs.

    Args:
        predictor: The model.
        table: The classes.
        files: The pictures; those that cannot be read are skipped.
        planned: The outputs of each.
        names: Whether overlays have names on large regions.

    Raises:
        InputError: The disk refuses.
    """
    done = PredictionSummary()
    interval = 0.5 if sys.stderr.isatty() else 20  # a log file gets a line now and then
    bar = tqdm(
        files, "predict", unit=" images", bar_format=BAR, dynamic_ncols=True,
        mininterval=interval, maxinterval=interval, disable=len(files) == 1,
    )  # fmt: skip
    for file, outputs in zip(bar, planned, strict=True):
        try:
            image = read_picture(file)
        except InputError as error:
            done.faults.append(error)
            continue
        write(segment(predictor, table, image, file=file), outputs, names=names)
        done.count += 1
        if (frames := num_frames(file)) > 1:
            done.multi_frame.append(f"{file} ({frames})")
    return done
