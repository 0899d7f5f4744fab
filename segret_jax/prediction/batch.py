"""Prediction of a user's pictures and videos, one after the other."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from segret_jax.data.class_table import ClassTable
from segret_jax.data.folders import plural
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
    """The numbers of predicted files, the errors of others, and pictures of several frames."""

    num_pictures: int = 0
    num_videos: int = 0
    num_video_frames: int = 0
    faults: list[InputError] = field(default_factory=list)
    multi_frame: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of predicted files."""
        return self.num_pictures + self.num_videos

    def counts(self) -> str:
        """Return the numbers as "6 pictures and 1 video (30 frames)"."""
        frames = plural(self.num_video_frames, "frame")
        videos = [f"{plural(self.num_videos, 'video')} ({frames})"] if self.num_videos else []
        if videos and not self.num_pictures:
            return videos[0]
        return " and ".join([plural(self.num_pictures, "picture"), *videos])

    def notes(self) -> list[str]:
        """Return a line about frames of pictures that were not read."""
        names = abbreviate(self.multi_frame, MAX_NAMED)
        return [f"of several frames only the first was read: {names}"] * bool(names)


def predict_files(
    predictor: Predictor,
    table: ClassTable,
    files: Sequence[Path],
    planned: Sequence[Outputs],
    *,
    names: bool = False,
    legend: bool = True,
    average: int = 1,
) -> PredictionSummary:
    """Segment each picture and video and write its outputs.

    Args:
        predictor: The model.
        table: The classes.
        files: The pictures and videos; those that cannot be read are skipped.
        planned: The outputs of each.
        names: Whether overlays have names on large regions.
        legend: Whether overlays have a legend below.
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
                    average=average, names=names, legend=legend, advance=bar.update,
                )  # fmt: skip
                done.num_videos += count > 0
                done.num_video_frames += count
                bar.total += count - (1 if length is None else length)
            else:
                error = _predict_picture(
                    predictor, table, file, outputs, names=names, legend=legend
                )
                done.num_pictures += not error
                bar.update()
                if (frames := num_frames(file)) > 1 and not error:
                    done.multi_frame.append(f"{file} ({frames})")
            done.faults += [error] if error else []
    return done


def _predict_picture(
    predictor: Predictor,
    table: ClassTable,
    file: Path,
    outputs: Outputs,
    *,
    names: bool,
    legend: bool,
) -> InputError | None:
    """Segment a picture; return what is wrong with it."""
    try:
        image = read_picture(file)
    except InputError as error:
        return error
    write(segment(predictor, table, image, file=file), outputs, names=names, legend=legend)
    return None
