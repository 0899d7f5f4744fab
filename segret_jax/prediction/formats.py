"""The file formats of `segret predict --save`."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segret_jax.data.class_table import ClassTable, label_lookup, load_class_table
from segret_jax.errors import InputError
from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.prediction import coco
from segret_jax.prediction.outputs import Outputs
from segret_jax.prediction.segmentation import Segmentation
from segret_jax.visualize.pictures import colorize, save_png

Info = dict[str, str]


def check_formats(formats: Sequence[str], classes: ClassTable) -> None:
    """Raise InputError if a format does not suit the classes of the model."""
    if "cityscapes" in formats:
        names = load_class_table("cityscapes").class_names
        if classes.class_names != names:
            raise InputError(
                f"the format cityscapes is for the {len(names)} classes of Cityscapes; this model "
                f"has {classes.num_classes} of {classes.name}: leave cityscapes out"
            )


def write(result: Segmentation, outputs: Outputs, *, names: bool = False) -> None:
    """Write all files of a segmentation.

    Args:
        result: The segmentation.
        outputs: The files by format, and the text to store in them.
        names: Whether the overlay has names on large regions.

    Raises:
        InputError: The disk refuses, or a format does not suit the classes.
    """
    check_formats([*outputs.files], result.classes)
    for name, file in outputs.files.items():
        if name == "overlay":
            save_png(result.overlay(names=names), file, info=outputs.info)
        else:
            WRITERS[name](result, file, outputs.info)


def _write_label(result: Segmentation, file: Path, info: Info) -> None:
    save_png(result.label_map, file, table=result.classes, info=info)


def _write_color(result: Segmentation, file: Path, info: Info) -> None:
    save_png(colorize(result.label_map, result.classes), file, info=info)


def _write_confidence(result: Segmentation, file: Path, info: Info) -> None:
    """Write round(255·p) as palette indices, of colors from dark (0) to light (1)."""
    levels = np.rint(result.confidence * np.float16(255)).astype(np.uint8)
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS).reshape(256, 3)
    text = {"Comment": "highest probability = palette index / 255; dark is 0, light is 1"}
    save_png(levels, file, palette=ramp[:, ::-1], info=info | text)


def _write_probabilities(result: Segmentation, file: Path, info: Info) -> None:
    content, names = io.BytesIO(), np.array(result.classes.class_names)
    arrays: dict[str, Any] = {"probabilities": result.probabilities, "classes": names, **info}
    np.savez_compressed(content, **arrays)
    _write(content.getvalue(), file)


def _write_json(result: Segmentation, file: Path, info: Info) -> None:
    height, width = result.label_map.shape
    digits = {"share": 6, "mean_confidence": 4}
    classes = [
        {key: round(value, digits[key]) if key in digits else value for key, value in one.items()}
        for one in result.classes_found()
    ]
    _dump(info | {"width": width, "height": height, "classes": classes}, file, indent=1)


def _write_polygons(result: Segmentation, file: Path, info: Info) -> None:
    features = [
        {
            "type": "Feature",
            "properties": {
                "class_id": class_id,
                "class_name": result.classes.class_names[class_id],
            },
            "geometry": polygon.__geo_interface__,
        }
        for class_id, polygon in result.to_polygons()
    ]
    _dump(info | {"type": "FeatureCollection", "features": features}, file)


def _write_coco(result: Segmentation, file: Path, info: Info) -> None:
    height, width = result.label_map.shape
    name = result.file.name if result.file else info["Source"]
    counts = result.pixels_of_classes()
    annotations = []
    for number, class_id in enumerate(np.flatnonzero(counts).tolist(), 1):
        mask = result.label_map == class_id
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": class_id,
                "segmentation": coco.encode_mask(mask),
                "area": int(counts[class_id]),
                "bbox": coco.bounding_box(mask),
                "iscrowd": 0,
            }
        )
    categories = [{"id": i, "name": one} for i, one in enumerate(result.classes.class_names)]
    images = [{"id": 1, "file_name": name, "width": width, "height": height}]
    lists = {"images": images, "categories": categories, "annotations": annotations}
    _dump(info | lists, file)


def _write_cityscapes(result: Segmentation, file: Path, info: Info) -> None:
    raw_ids = load_class_table("cityscapes").raw_ids
    ids = label_lookup({i: raws[0] for i, raws in enumerate(raw_ids)})
    save_png(ids[result.label_map], file, info=info)


def _dump(content: dict[str, Any], file: Path, *, indent: int | None = None) -> None:
    _write(json.dumps(content, indent=indent) + "\n", file)


def _write(content: str | bytes, file: Path) -> None:
    with disk_errors_as_input_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, content)


WRITERS: dict[str, Callable[[Segmentation, Path, Info], None]] = {
    "label": _write_label,
    "color": _write_color,
    "confidence": _write_confidence,
    "probabilities": _write_probabilities,
    "json": _write_json,
    "polygons": _write_polygons,
    "coco": _write_coco,
    "cityscapes": _write_cityscapes,
}
