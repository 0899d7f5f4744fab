"""Reading and decoding of photographs that strangers send."""

import asyncio
import io
import warnings
from contextlib import suppress

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from starlette.requests import ClientDisconnect, Request

from segret_jax.data.decode import decode_image
from segret_jax.errors import InputError, shorten
from segret_jax.serve.limits import MOST_PIXELS, Limits, RefusedError

# Not all that Pillow reads: EPS would start Ghostscript, and others hold no photographs.
FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP"]
NAME = "the photograph"
DISCARD_BYTES, DISCARD_SECONDS = 100_000_000, 5.0
BODY = "send the file itself as the body, such as by curl --data-binary @photograph.jpg"


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request; never more than the limit is held.

    Raises:
        RefusedError: It is too large, too slow, empty, or a form.
    """
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):
        raise RefusedError(415, f"the body is of type {shorten(kind)}: {BODY}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _discard(request)
        raise _too_large(f"{int(declared):,} bytes", limits)
    chunks, size, more = [], 0, True
    try:
        async with asyncio.timeout(limits.upload_seconds):
            while more and size <= limits.max_bytes:
                chunk, more = await _next_chunk(request)
                chunks.append(chunk)
                size += len(chunk)
    except TimeoutError:
        message = f"only {size:,} bytes came in {limits.upload_seconds:g} s: send a smaller file"
        raise RefusedError(408, message) from None
    if size > limits.max_bytes:
        if more:
            chunks.clear()
            await _discard(request)
        raise _too_large(f"more than {limits.max_bytes:,} bytes", limits)
    if not size:
        raise RefusedError(422, f"the body is empty: {BODY}")
    return b"".join(chunks)


def _too_large(size: str, limits: Limits) -> RefusedError:
    most = f"{limits.max_bytes:,}"
    return RefusedError(413, f"{NAME} has {size}; the limit is {most}: send a smaller file")


async def _next_chunk(request: Request) -> tuple[bytes, bool]:
    """Return the next part of a body, and whether there is more; ClientDisconnect at its end."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _discard(request: Request) -> None:
    """Read on without keeping anything: a client that still sends does not see an answer."""
    size, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while more and size < DISCARD_BYTES:
                chunk, more = await _next_chunk(request)
                size += len(chunk)


async def check_header(content: bytes, limits: Limits) -> None:
    """Check format and size by the header, before anything is decoded.

    Raises:
        RefusedError: It is no photograph, or has too many pixels.
    """
    # In a thread: a header of many small parts takes seconds.
    await asyncio.to_thread(_check_header, content, limits)


def _check_header(content: bytes, limits: Limits) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = f"more than {MOST_PIXELS:,} pixels"
        raise RefusedError(413, _too_many(size, limits)) from None
    except Exception as error:  # a hostile file meets the readers anywhere
        raise _not_readable(error, content) from error
    if width * height > limits.max_pixels:
        raise RefusedError(413, _too_many(f"{width} x {height} pixels", limits))


def _too_many(size: str, limits: Limits) -> str:
    most = f"{limits.max_pixels:,}"
    return f"{NAME} has {size}; the limit is {most}: send a smaller one"


def decode(content: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of a photograph whose header was checked, upright.

    Raises:
        RefusedError: It cannot be read.
    """
    try:
        return decode_image(content, where=NAME, formats=FORMATS)
    except InputError as error:
        raise RefusedError(422, str(error)) from error
    except Exception as error:
        raise _not_readable(error, content) from error


def _not_readable(error: Exception, content: bytes) -> RefusedError:
    known = ", ".join(FORMATS)
    begins = shorten(repr(content[:8])[2:-1])
    return RefusedError(
        422,
        f"the body of {len(content):,} bytes, beginning with '{begins}', cannot be read as an "
        f"image ({type(error).__name__}): send a photograph as {known}",
    )


def refuse_bombs() -> None:
    """Make Pillow refuse what it would only warn of."""
    warnings.simplefilter("error", Image.DecompressionBombWarning)
