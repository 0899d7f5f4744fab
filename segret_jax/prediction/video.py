"""Prediction of a video, frame after frame, whatever its length."""

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Predictor, Scores
from segret_jax.prediction.outputs import Outputs
from segret_jax.prediction.segmentation import Segmentation
from segret_jax.prediction.video_files import RGB, VideoReader, VideoWriter
from segret_jax.visualize.legend import legend_below
from segret_jax.visualize.pictures import colorize

MAX_LEGEND = 0.5  # of the height of a frame


def predict_video(
    predictor: Predictor,
    table: ClassTable,
    file: Path,
    outputs: Outputs,
    *,
    average: int = 1,
    names: bool = False,
    legend: bool = True,
    advance: Callable[[], object] = lambda: None,
) -> tuple[int, InputError | None]:
    """Segment the frames of a video and write its outputs.

    Args:
        predictor: The model.
        table: The classes.
        file: The video.
        outputs: The files, of `VIDEO_FILES`.
        average: The number of frames, up to each, whose probabilities are averaged.
        names: Whether overlays have names on large regions.
        legend: Whether overlays have a legend below.
        advance: Called after each frame.

    Returns:
        The number of frames, and what is wrong with the video. The frames that could be read are
        written all the same.

    Raises:
        InputError: The disk refuses.
    """
    count = 0
    recent: deque[Scores] = deque(maxlen=average)
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(VideoReader(file))
        except InputError as error:
            return 0, error
        writers = {
            name: stack.enter_context(VideoWriter(output, reader, outputs.info))
            for name, output in outputs.files.items()
        }
        for frame in reader.frames():
            if not count:
                below = _legend(frame.pixels, table)[: None if legend else 0]
            recent.append(predictor.scores([predictor.prepare(frame.pixels)]))
            *before, scores = recent
            scores = scores.averaged(before) if before else scores
            label_map = scores.predictions()[0].label_map
            result = Segmentation(frame.pixels, table, label_map, scores, file=file)
            for name, writer in writers.items():
                writer.write(_draw(name, result, below, names=names), frame)
            count += 1
            advance()
    if not reader.fault:
        return count, None
    written = f"; its {count} frames that could be read are written" if count else ""
    return count, InputError(f"{file}: {reader.fault}{written}")


def _legend(picture: RGB, table: ClassTable) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return the legend of all classes, the same through a video; none if it is too high."""
    height, width = picture.shape[:2]
    everything = np.arange(table.num_classes, dtype=np.uint8)[None]
    legend = legend_below((height, width), table, [everything])
    return legend if len(legend) <= MAX_LEGEND * height else legend[:0]


def _draw(name: str, result: Segmentation, legend: RGB, *, names: bool) -> RGB:
    if name == "color":
        return colorize(result.label_map, result.classes)
    picture = np.asarray(result.overlay(names=names, legend=False))
    return np.concatenate([picture, legend])
