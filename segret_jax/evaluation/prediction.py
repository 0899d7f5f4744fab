"""Prediction of a user's pictures: label maps and overlays as files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError, abbreviate
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.inputs import MAX_NAMED, num_frames, read_picture
from segret_jax.evaluation.outputs import Outputs
from segret_jax.visualize.legend import add_legend
from segret_jax.visualize.pictures import overlay, save_png


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


def segment(
    predictor: Predictor, table: ClassTable, files: Sequence[Path], planned: Sequence[Outputs]
) -> PredictionSummary:
    """Write the label map and the overlay of each picture.

    Args:
        predictor: The model.
        table: The classes.
        files: The pictures; those that cannot be read are skipped.
        planned: The outputs of each.

    Raises:
        InputError: The disk refuses.
    """
    done = PredictionSummary()
    bar = tqdm(files, "predict", unit="image", disable=len(files) == 1)
    for file, outputs in zip(bar, planned, strict=True):
        try:
            image = read_picture(file)
        except InputError as error:
            done.faults.append(error)
            continue
        pred = predictor.label_map(image)
        save_png(pred, outputs.label, table=table, info=outputs.info)
        picture = add_legend(overlay(image, pred, table), table, [pred])
        save_png(picture, outputs.overlay, info=outputs.info)
        done.count += 1
        if (frames := num_frames(file)) > 1:
            done.multi_frame.append(f"{file} ({frames})")
    return done
