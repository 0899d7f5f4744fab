"""The file formats of `segret predict --save`."""

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from segret_jax.data.class_table import ClassTable, label_lookup, load_class_table
from segret_jax.errors import InputError
from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.prediction import coco
from segret_jax.prediction.outputs import Outputs
from segret_jax.prediction.segmentation import OPACITY, Segmentation
from segret_jax.visualize.pictures import colorize, encode_png

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


def write(
    result: Segmentation, outputs: Outputs, *, names: bool = False, legend: bool = True
) -> None:
    """Write all files of a segmentation.

    Args:
        result: The segmentation.
        outputs: The files by format, and the text to store in them.
        names: Whether the overlay has names on large regions.
        legend: Whether the overlay has a legend below.

    Raises:
        InputError: The disk refuses, or a format does not suit the classes.
    """
    check_formats([*outputs.files], result.classes)
    for name, file in outputs.files.items():
        content = encode(result, name, outputs.info, names=names, legend=legend)
        with disk_errors_as_input_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, content)


def encode(
    result: Segmentation,
    name: str,
    info: Info,
    *,
    names: bool = False,
    legend: bool = True,
    opacity: float = OPACITY,
) -> bytes:
    """Return the content of a file.

    Args:
        result: The segmentation.
        name: The format, a key of `outputs.FILES`.
        info: Text to store in the file.
        names: Whether an overlay has names on large regions.
        legend: Whether an overlay has a legend below.
        opacity: The weight of an overlay's colors, 0 to 1.
    """
    if name == "overlay":
        picture = result.overlay(names=names, legend=legend, opacity=opacity)
        return encode_png(picture, info=info)
    return ENCODERS[name](result, info)


def _encode_label(result: Segmentation, info: Info) -> bytes:
    return encode_png(result.label_map, table=result.classes, info=info)


def _encode_color(result: Segmentation, info: Info) -> bytes:
    return encode_png(colorize(result.label_map, result.classes), info=info)


def _encode_confidence(result: Segmentation, info: Info) -> bytes:
    """Write round(255·p) as palette indices, of colors from dark (0) to light (1)."""
    levels = np.rint(result.confidence * np.float16(255)).astype(np.uint8)
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS).reshape(256, 3)
    text = {"Comment": "highest probability = palette index / 255; dark is 0, light is 1"}
    return encode_png(levels, palette=ramp[:, ::-1], info=info | text)


def _encode_probabilities(result: Segmentation, info: Info) -> bytes:
    content, names = io.BytesIO(), np.array(result.classes.class_names)
    arrays: dict[str, Any] = {"probabilities": result.probabilities, "classes": names, **info}
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _encode_json(result: Segmentation, info: Info) -> bytes:
    height, width = result.label_map.shape
    digits = {"share": 6, "mean_confidence": 4}
    classes = [
        {key: round(value, digits[key]) if key in digits else value for key, value in one.items()}
        for one in result.classes_found()
    ]
    return _dump(info | {"width": width, "height": height, "classes": classes}, indent=1)


def _encode_polygons(result: Segmentation, info: Info) -> bytes:
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
    return _dump(info | {"type": "FeatureCollection", "features": features})


def _encode_coco(result: Segmentation, info: Info) -> bytes:
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
    return _dump(info | lists)


def _encode_cityscapes(result: Segmentation, info: Info) -> bytes:
    raw_ids = load_class_table("cityscapes").raw_ids
    ids = label_lookup({i: raws[0] for i, raws in enumerate(raw_ids)})
    return encode_png(ids[result.label_map], info=info)


def _dump(content: dict[str, Any], *, indent: int | None = None) -> bytes:
    return (json.dumps(content, indent=indent) + "\n").encode()


ENCODERS: dict[str, Callable[[Segmentation, Info], bytes]] = {
    "label": _encode_label,
    "color": _encode_color,
    "confidence": _encode_confidence,
    "probabilities": _encode_probabilities,
    "json": _encode_json,
    "polygons": _encode_polygons,
    "coco": _encode_coco,
    "cityscapes": _encode_cityscapes,
}
