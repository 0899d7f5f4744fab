"""Examination of each pair of files by the label doctor, in parallel worker processes."""

import hashlib
import io
import math
import multiprocessing
import signal
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segret_jax.data.class_table import IGNORE, UNKNOWN
from segret_jax.data.decode import Label, Pixels, decode_label, decode_turned, stored_form
from segret_jax.data.orientation import label_is_stored_grid, swaps_sides
from segret_jax.data.shift_signs import count_stored
from segret_jax.data.sources import Record, RecordSource
from segret_jax.data.workers import blocked_signals, exit_with_parent
from segret_jax.errors import InputError

CHUNK = 16  # pairs that a worker takes at a time


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one pair: a key of `findings.KINDS`, file and details, and the file's form."""

    kind: str
    detail: str
    form: str = ""


@dataclass(slots=True, kw_only=True)
class Examined:
    """What is known of one pair; kept small because processes exchange it."""

    index: int
    name: str
    faults: list[Fault] = field(default_factory=list)
    stored: dict[int, int] = field(default_factory=dict)  # pixels by stored label value
    digest: bytes = b""  # of the image's size and pixels
    dhash: int = 0


def examine_all(source: RecordSource, *, workers: int) -> Iterator[Examined]:
    """Examine every pair, in order; one that ends its worker process is reported as a fault."""
    if workers > 1 and len(source) > CHUNK:
        yield from _examine_in_pool(source, range(len(source)), workers)
    else:
        yield from (examine(source, index) for index in range(len(source)))


def _examine_in_pool(source: RecordSource, indices: range, workers: int) -> Iterator[Examined]:
    spawn, done = multiprocessing.get_context("spawn"), 0
    workers = min(workers, math.ceil(len(indices) / CHUNK))
    pool = ProcessPoolExecutor(workers, spawn, _start_worker, (source,))
    try:
        with blocked_signals(signal.SIGINT):
            results = pool.map(_examine_own, indices, chunksize=CHUNK)  # starts the workers
        for examined in results:
            yield examined
            done += 1
    except BrokenProcessPool:
        rest = indices[done:]
        if len(rest) == 1:
            fault = Fault("unreadable", "reading this pair ended the process that read it")
            yield Examined(index=rest[0], name=source.name(rest[0]), faults=[fault])
            return
        middle = len(rest) // 2  # halve until the faulty pair is alone
        for half in (rest[:middle], rest[middle:]):
            yield from _examine_in_pool(source, half, workers)
    finally:
        pool.shutdown(cancel_futures=True)


_source: RecordSource  # of a worker process


def _start_worker(source: RecordSource) -> None:
    global _source
    _source = source
    exit_with_parent(signal.SIGINT)  # not SIGTERM, with which a broken pool ends its workers


def _examine_own(index: int) -> Examined:
    return examine(_source, index)


def examine(source: RecordSource, index: int) -> Examined:
    """Decode one pair and note its faults; never raises for what a file holds."""
    examined = Examined(index=index, name=source.name(index))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about files that are examined here anyway
        examined.faults += _faults(source, examined)
    return examined


def _faults(source: RecordSource, examined: Examined) -> Iterator[Fault]:
    try:
        record = source.record(examined.index)
    except InputError as error:
        yield Fault("unreadable", str(error))
        return
    found = yield from _image_faults(record, examined)
    raw = yield from _label_faults(record, examined)
    if raw is not None:
        yield from _id_faults(raw, source.layout.lookup, record.label_path)
    if found is not None and raw is not None:
        yield from _fit_faults(*found, raw, record)


def _image_faults(
    record: Record, examined: Examined
) -> Generator[Fault, None, tuple[tuple[int, int], int] | None]:
    """Note the image's hashes; return its upright size and orientation, None if undecodable."""
    form, mode, frames = _header(record.image)
    try:
        image, orientation = decode_turned(record.image, where=record.image_path)
    except Exception as error:  # also what a decoder's own bug may raise
        yield Fault("image_unreadable", _reason(record.image_path, error), form)
        return None
    if mode != "RGB":
        yield Fault("image_form", record.image_path, form)
    if frames > 1:
        yield Fault("frames", f"{record.image_path} ({frames} frames)")
    examined.digest = hashlib.sha256(image.tobytes() + str(image.shape).encode()).digest()
    examined.dhash = difference_hash(image)
    return image.shape[:2], orientation


def _label_faults(record: Record, examined: Examined) -> Generator[Fault, None, Label | None]:
    form, mode, _ = _header(record.label)
    try:
        raw = decode_label(record.label, where=record.label_path)
    except Exception as error:  # also what a decoder's own bug may raise
        yield Fault("label_unreadable", _reason(record.label_path, error), form)
        return None
    if mode == "P":
        yield Fault("palette", record.label_path)
    counts = count_stored(raw)
    examined.stored = {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    return raw


def _reason(path: str, error: Exception) -> str:
    known = isinstance(error, InputError)
    return str(error) if known else f"{path}: the decoder failed ({error!r})"


def _header(content: bytes) -> tuple[str, str, int]:
    """Return the file's form ("PNG of mode L, stored as L;4"), mode and number of frames."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            stored = stored_form(image)
            as_stored = f", stored as {stored}" if image.format == "PNG" and ";" in stored else ""
            # An MPO, which many phones write as .jpg, holds previews beside its one photograph.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            return f"{image.format} of mode {image.mode}{as_stored}", image.mode, frames
    except Exception:  # decoding it gives the reason
        return "no image", "", 1


def _fit_faults(
    size: tuple[int, int], orientation: int, raw: Label, record: Record
) -> Iterator[Fault]:
    """Compare a label's size with that of its upright image."""
    turned = f"{record.image_path} (orientation {orientation})"
    if label_is_stored_grid(raw.shape, size, orientation):
        yield Fault("label_turned", turned)
    elif size != raw.shape:
        label_size, image_size = (f"{height}x{width}" for height, width in (raw.shape, size))
        detail = f"{record.label_path} is {label_size} (height x width), its image {image_size}"
        yield Fault("sizes", detail)
    elif orientation != 1:
        unclear = not swaps_sides(orientation) or size[0] == size[1]
        yield Fault("exif_unclear" if unclear else "exif", turned)


def _id_faults(raw: Label, lookup: UInt8[np.ndarray, "256"], path: str) -> Iterator[Fault]:
    label = lookup[raw]
    if (label == IGNORE).all():
        yield Fault("ignored", path)
    unknown = label == UNKNOWN
    if unknown.any():
        y, x = np.argwhere(unknown)[0]
        ids, counts = np.unique(raw[unknown], return_counts=True)
        pixels = ", ".join(f"{i} ({n} px)" for i, n in zip(ids, counts, strict=True))
        yield Fault("unknown", f"{path}: {raw[y, x]} at pixel (y={y}, x={x}); in all {pixels}")


def difference_hash(image: Pixels) -> int:
    """Return 64 bits: on a grid of 8x9 mean grays, whether each cell's right neighbor is brighter.

    The bits hardly change when an image is scaled or compressed again (dHash, N. Krawetz 2013).
    """
    small = Image.fromarray(image).resize((9, 8), Image.Resampling.BOX)
    gray = np.asarray(small.convert("L"))
    return int.from_bytes(np.packbits(gray[:, 1:] > gray[:, :-1]).tobytes(), "big")
