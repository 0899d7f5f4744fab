"""The description of the HTTP interface as OpenAPI 3.1, from which the page /docs is made."""

from typing import Any

from segret_jax import __version__
from segret_jax.prediction.segmentation import OPACITY
from segret_jax.serve.answers import MEDIA_TYPES
from segret_jax.serve.limits import Limits
from segret_jax.serve.uploads import FORMATS

MEANINGS = {
    "json": "size, and of each class the share of pixels and the mean confidence",
    "overlay": "the classes' colors over the photograph, with a legend",
    "label": "class ids, 8 bits, the classes' colors as the palette",
    "color": "the classes' colors as RGB",
    "confidence": "the highest probability, as round(255 p)",
    "polygons": "GeoJSON of all regions, in pixels from the top left corner",
    "coco": "masks as COCO run lengths",
    "raw": "gzip of H x W class ids, then of H x W confidences, a byte each",
}
FORMAT_ROWS = [(name, MEDIA_TYPES[name], text) for name, text in MEANINGS.items()]


def interface(model: str, limits: Limits) -> dict[str, Any]:
    """Return the description for a model and its limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segret serve",
            "version": __version__,
            "description": f"Semantic segmentation of photographs by {model}.",
        },
        "paths": {
            "/predict": {"post": _predict(limits)},
            "/status": {
                "get": {
                    "summary": "The model, its classes, the limits, and how many photographs wait",
                    "responses": {"200": {"description": "As JSON", "content": _json()}},
                }
            },
        },
    }


def _predict(limits: Limits) -> dict[str, Any]:
    return {
        "summary": "Segment a photograph",
        "description": (
            "The body is the file itself, not a form. Photographs are turned upright by their EXIF "
            "data, and segmented in the order in which they come. The header Server-Timing tells "
            "the milliseconds in the queue and at the model."
        ),
        "parameters": [
            _parameter(
                "format",
                {"type": "string", "default": "json"},
                f"One of {', '.join(MEANINGS)}. Several, separated by commas, give one JSON object "
                "in which those that are not JSON are data URIs.",
            ),
            _parameter(
                "opacity",
                {"type": "number", "minimum": 0, "maximum": 1, "default": OPACITY},
                "The weight of an overlay's colors.",
            ),
            _parameter(
                "names",
                {"type": "boolean", "default": False},
                "Whether an overlay has names on large regions.",
            ),
        ],
        "requestBody": {
            "required": True,
            "description": f"A photograph as {', '.join(FORMATS)}.",
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        "responses": {
            "200": {
                "description": "The segmentation",
                "content": {kind: {} for kind in dict.fromkeys(MEDIA_TYPES.values())},
            },
            **{status: _error(text) for status, text in _refusals(limits).items()},
        },
    }


def _refusals(limits: Limits) -> dict[str, str]:
    return {
        "400": "A parameter is unknown or has no possible value.",
        "403": "A page of another site sent the request.",
        "408": f"The photograph took more than {limits.upload_seconds:g} seconds to arrive.",
        "413": f"More than {limits.max_bytes:,} bytes, or {limits.max_pixels:,} pixels.",
        "415": "The body is a form.",
        "421": "The server is not called by this name.",
        "422": "The body is no photograph, or a damaged one.",
        "429": f"This client has {limits.per_client} photographs in the queue.",
        "503": f"The queue is full: {limits.queue} photographs.",
    }


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": _json()}


def _json() -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}}}
