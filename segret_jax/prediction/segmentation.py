"""The segmentation of one image: what `model.predict` returns and `segret predict` writes."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Int, UInt8
from PIL import Image

from segret_jax.data.class_table import IGNORE, ClassTable, pixels_of_ids
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.padding import Padding
from segret_jax.prediction.outputs import (
    DEFAULT_FORMATS,
    Outputs,
    check_replaceable,
    output_files,
    parse_formats,
    source_info,
)
from segret_jax.prediction.polygons import ClassPolygon, polygons_of
from segret_jax.visualize import pictures
from segret_jax.visualize.legend import legend_below
from segret_jax.visualize.region_names import draw_names

NOTEBOOK_SIDE = 1024
OPACITY = 0.55  # of overlays


@runtime_checkable
class ImageScores(Protocol):
    """What computes confidence and probabilities of a batch (`evaluation.inference.Scores`)."""

    def confidence(self) -> Sequence[Float16[np.ndarray, "h w"]]: ...

    def probabilities(self) -> Sequence[Float16[np.ndarray, "h w k"]]: ...


class Segmentation:
    """The segmentation of an image of H x W pixels into K classes.

    Confidence, probabilities and polygons are computed when they are first asked for, from the
    logits that the network gave; it does not run again.

    Attributes:
        image: The image, upright, RGB, uint8 [H, W, 3].
        classes: The names and colors of the classes.
        label_map: Each pixel's class id, uint8 [H, W].
        file: The image's file, or None.
    """

    def __init__(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        classes: ClassTable,
        label_map: UInt8[np.ndarray, "H W"],
        scores: ImageScores,
        *,
        file: Path | None = None,
    ):
        self.image, self.classes, self.label_map, self.file = image, classes, label_map, file
        self._scores = scores

    def __repr__(self) -> str:
        (height, width), counts = self.label_map.shape, self.pixels_of_classes()
        largest = [i for i in np.argsort(-counts)[:3].tolist() if counts[i]]
        parts = [f"{self.classes.class_names[i]} {counts[i] / counts.sum():.0%}" for i in largest]
        return f"Segmentation({width}x{height}: {', '.join(parts)})"

    @functools.cached_property
    def confidence(self) -> Float16[np.ndarray, "H W"]:
        """Each pixel's highest probability, float16 [H, W]."""
        return self._scores.confidence()[0]

    @functools.cached_property
    def probabilities(self) -> Float16[np.ndarray, "H W K"]:
        """The probabilities of all classes, float16 [H, W, K]: 2·K bytes per pixel."""
        return self._scores.probabilities()[0]

    def pixels_of_classes(self) -> Int[np.ndarray, " K"]:
        """Return the number of pixels of each class, int [K]."""
        return pixels_of_ids(self.label_map)[: self.classes.num_classes]

    def classes_found(self) -> list[dict[str, Any]]:
        """Return id, name, pixels, share and mean confidence of each class that has pixels."""
        counts, sums = self.pixels_of_classes(), np.zeros(IGNORE + 1)
        for ids, values in zip(self.label_map, self.confidence, strict=True):
            sums += np.bincount(ids, values, minlength=IGNORE + 1)
        return [
            {
                "id": i,
                "name": self.classes.class_names[i],
                "pixels": int(counts[i]),
                "share": float(counts[i] / self.label_map.size),
                "mean_confidence": float(sums[i] / counts[i]),
            }
            for i in np.flatnonzero(counts).tolist()
        ]

    def overlay(
        self, *, opacity: float = OPACITY, names: bool = False, legend: bool = True
    ) -> Image.Image:
        """Draw the classes' colors over the image.

        Args:
            opacity: The weight of the colors, 0 to 1.
            names: Whether to write the names of classes on large regions.
            legend: Whether to add a legend below, which makes the picture higher.
        """
        height, width = self.label_map.shape
        below = np.zeros((0, width, 3), np.uint8)
        if legend:
            below = legend_below((height, width), self.classes, [self.label_map])
        picture = np.empty((height + len(below), width, 3), np.uint8)
        picture[height:], drawn = below, picture[:height]
        pictures.overlay(self.image, self.label_map, self.classes, opacity=opacity, out=drawn)
        if names:
            draw_names(drawn, self.label_map, self.classes)
        return Image.fromarray(picture)

    def to_polygons(self) -> list[ClassPolygon]:
        """Return class id and `shapely.Polygon` of each connected region.

        The polygons follow the edges of the pixels: x to the right and y down, in pixels from the
        top left corner.
        """
        return polygons_of(self.label_map, self.classes.num_classes)

    def save(
        self,
        folder: str | Path,
        formats: Sequence[str] | str = DEFAULT_FORMATS,
        *,
        name: str = "",
        names: bool = False,
    ) -> list[Path]:
        """Write files as `segret predict --save` does, and return their paths.

        Args:
            folder: Their folder; it is made if necessary.
            formats: Keys of `outputs.FILES`, or one string: "overlay,label".
            name: What their names begin with; by default that of the image's file, or "image".
            names: Whether the overlay has names on large regions.

        Raises:
            InputError: A format is unknown or does not suit the classes, the disk refuses, or a
                file exists that was not made from this image.
        """
        from segret_jax.prediction.formats import write

        chosen = parse_formats(formats if isinstance(formats, str) else ",".join(formats))
        name = name or (self.file.stem if self.file else "image")
        info = source_info(self.file.name if self.file else name, self.file)
        files = output_files(Path(folder).expanduser(), name, chosen)
        check_replaceable(dict.fromkeys(files.values(), info))
        write(self, Outputs(files, info), names=names)
        return [*files.values()]

    def _repr_png_(self) -> bytes:
        picture = self.overlay()
        picture.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE))
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()


def segment(
    predictor: Predictor,
    classes: ClassTable,
    image: UInt8[np.ndarray, "H W 3"],
    *,
    file: Path | None = None,
    padding: Padding | None = None,
) -> Segmentation:
    """Segment an image.

    Args:
        predictor: The model.
        classes: The classes of its outputs.
        image: RGB from 0 to 255.
        file: The image's file, or None.
        padding: The padded sizes of the network's inputs; None: those of the ladder.

    Raises:
        InputError: The network's output is not a number.
    """
    scores = predictor.scores([predictor.prepare(image, padding=padding)])
    return Segmentation(image, classes, scores.predictions()[0].label_map, scores, file=file)
