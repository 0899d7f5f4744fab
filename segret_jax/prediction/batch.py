"""Prediction of a user's pictures and videos, one after the other."""

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
from segret_jax.prediction.video import predict_video
from segret_jax.prediction.video_files import expected_frames, is_video

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left"


@dataclass
class PredictionSummary:
    """The number of predicted files, the errors of the others, and pictures of several frames."""

    count: int = 0
    num_video_frames: int = 0
    faults: list[InputError] = field(default_factory=list)
    multi_frame: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Return lines about the frames of videos, and about frames that were not read."""
        videos = [f"frames of videos: {self.num_video_frames}"] if self.num_video_frames else []
        names = abbreviate(self.multi_frame, MAX_NAMED)
        return videos + [f"of several frames only the first was read: {names}"] * bool(names)


def predict_files(
    predictor: Predictor,
    table: ClassTable,
    files: Sequence[Path],
    planned: Sequence[Outputs],
    *,
    names: bool = False,
    average: int = 1,
) -> PredictionSummary:
    """Segment each picture and video and write its outputs.

    Args:
        predictor: The model.
        table: The classes.
        files: The pictures and videos; those that cannot be read are skipped.
        planned: The outputs of each.
        names: Whether overlays have names on large regions.
        average: The number of frames of a video whose probabilities are averaged.

    Raises:
        InputError: The disk refuses.
    """
    done = PredictionSummary()
    lengths = [expected_frames(file) if is_video(file) else 1 for file in files]
    total = sum(1 if length is None else length for length in lengths)
    interval = 0.5 if sys.stderr.isatty() else 20  # a log file gets a line now and then
    bar = tqdm(
        desc="predict", total=total, unit=" images", bar_format=BAR, dynamic_ncols=True,
        mininterval=interval, maxinterval=interval, disable=len(files) == 1 and total == 1,
    )  # fmt: skip
    with bar:
        for file, outputs, length in zip(files, planned, lengths, strict=True):
            if is_video(file):
                count, error = predict_video(
                    predictor, table, file, outputs,
                    average=average, names=names, advance=bar.update,
                )  # fmt: skip
                done.num_video_frames += count
                bar.total += count - (1 if length is None else length)
            else:
                count, error = _predict_picture(predictor, table, file, outputs, names=names)
                bar.update()
                if (frames := num_frames(file)) > 1 and not error:
                    done.multi_frame.append(f"{file} ({frames})")
            done.count += count > 0
            done.faults += [error] if error else []
    return done


def _predict_picture(
    predictor: Predictor, table: ClassTable, file: Path, outputs: Outputs, *, names: bool
) -> tuple[int, InputError | None]:
    """Segment a picture; return 1, or 0 with what is wrong with it."""
    try:
        image = read_picture(file)
    except InputError as error:
        return 0, error
    write(segment(predictor, table, image, file=file), outputs, names=names)
    return 1, None
