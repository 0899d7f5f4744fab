"""The answer to a photograph: what a client may ask for, and its content."""

import base64
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from starlette.datastructures import QueryParams

from segret_jax.errors import InputError, shorten
from segret_jax.prediction.formats import encode
from segret_jax.prediction.outputs import parse_formats, source_info
from segret_jax.prediction.segmentation import OPACITY, Segmentation
from segret_jax.serve import uploads
from segret_jax.serve.limits import RefusedError

PNG, JSON = "image/png", "application/json"
GEOJSON, GZIP = "application/geo+json", "application/gzip"
MEDIA_TYPES = {
    "json": JSON, "overlay": PNG, "label": PNG, "color": PNG, "confidence": PNG,
    "polygons": GEOJSON, "coco": JSON, "raw": GZIP,
}  # fmt: skip
"""What a client may ask for. Not probabilities: they take 2·K bytes per pixel."""

Segmenting = Callable[[UInt8[np.ndarray, "H W 3"]], Segmentation]


@dataclass(frozen=True)
class Wish:
    """What a client asks for: formats, keys of `MEDIA_TYPES`, and how an overlay is drawn."""

    formats: tuple[str, ...]
    opacity: float
    names: bool


@dataclass(frozen=True)
class Answer:
    """The content for a client, and how long it took in seconds."""

    content: bytes
    media_type: str
    seconds: float


def read_wish(query: QueryParams) -> Wish:
    """Read the parameters of a request.

    Raises:
        RefusedError: One is unknown or has no possible value.
    """
    for key in query:
        if key not in ("format", "opacity", "names"):
            message = f"unknown parameter {shorten(key)!r}: known are format, opacity and names"
            raise RefusedError(400, message)
    try:
        formats = parse_formats(shorten(query.get("format", "json")), MEDIA_TYPES)
    except InputError as error:
        raise RefusedError(400, str(error)) from error
    text, names = query.get("opacity", str(OPACITY)), query.get("names", "false")
    try:
        opacity = float(text)
    except ValueError:
        opacity = -1.0
    if not 0 <= opacity <= 1:
        raise RefusedError(400, f"opacity is {shorten(text)!r}: give a number from 0 to 1")
    if names not in ("true", "false"):
        raise RefusedError(400, f"names is {shorten(names)!r}: give true or false")
    return Wish(formats, opacity, names == "true")


def answer(content: bytes, wish: Wish, segment: Segmenting) -> Answer:
    """Segment the photograph in `content`.

    Raises:
        RefusedError: It cannot be read.
    """
    begun = time.perf_counter()
    result, info = segment(uploads.decode(content)), source_info("photograph")
    parts = {
        name: _raw(result)
        if name == "raw"
        else encode(result, name, info, names=wish.names, opacity=wish.opacity)
        for name in wish.formats
    }
    kind = MEDIA_TYPES[wish.formats[0]]
    if len(parts) == 1:
        body = parts[wish.formats[0]]
    else:
        body, kind = b"{%s}" % b", ".join(_member(*part) for part in parts.items()), JSON
    return Answer(body, kind, time.perf_counter() - begun)


def _raw(result: Segmentation) -> bytes:
    """Return class ids and confidence, each [H, W] of a byte, as gzip."""
    confidence = np.rint(result.confidence * np.float16(255)).astype(np.uint8)
    return gzip.compress(result.label_map.tobytes() + confidence.tobytes(), compresslevel=1)


def _member(name: str, content: bytes) -> bytes:
    """Return a format as part of a JSON object: JSON as it is, another as a data URI."""
    kind = MEDIA_TYPES[name]
    if kind in (PNG, GZIP):
        content = b'"data:%s;base64,%s"' % (kind.encode(), base64.b64encode(content))
    return b"%s: %s" % (json.dumps(name).encode(), content.strip())
