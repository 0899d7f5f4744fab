"""What the label doctor learns from each pair of files, many at a time in worker processes."""

import hashlib
import io
import math
import multiprocessing
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segret_jax.data.class_table import IGNORE, STRAY
from segret_jax.data.decode import Label, Pixels, decode_label, decode_turned, stored_form
from segret_jax.data.orientation import label_is_stored_grid, swaps_sides
from segret_jax.data.shift_signs import count_stored
from segret_jax.data.sources import Record, RecordSource
from segret_jax.data.workers import blocked_signals, follow_parent
from segret_jax.errors import InputError

CHUNK = 16  # pairs that a worker takes at a time


@dataclass(frozen=True, slots=True)
class Fault:
    """Something about one pair: kind (of `findings.KINDS`), form of the file, details."""

    kind: str
    form: str
    detail: str


@dataclass(slots=True, kw_only=True)
class Examined:
    """What is kept of one pair; small, for it travels between processes."""

    index: int
    name: str
    faults: list[Fault] = field(default_factory=list)
    stored: dict[int, int] = field(default_factory=dict)  # pixels by stored label value
    digest: bytes = b""  # of the image's size and pixels
    dhash: int = 0


def examine_all(source: RecordSource, *, workers: int) -> Iterator[Examined]:
    """Examine every pair, in order. One that ends its worker process is among them, as a fault."""
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
            fault = Fault("unreadable", "", "reading this pair ended the process that read it")
            yield Examined(index=rest[0], name=source.name(rest[0]), faults=[fault])
            return
        middle = len(rest) // 2  # halve until the guilty pair is alone
        for half in (rest[:middle], rest[middle:]):
            yield from _examine_in_pool(source, half, workers)
    finally:
        pool.shutdown(cancel_futures=True)


_source: RecordSource  # of a worker process


def _start_worker(source: RecordSource) -> None:
    global _source
    _source = source
    follow_parent(signal.SIGINT)  # not SIGTERM, with which a broken pool ends its workers


def _examine_own(index: int) -> Examined:
    return examine(_source, index)


def examine(source: RecordSource, index: int) -> Examined:
    """Decode one pair and note what is to be said about it; never raises for what a file holds."""
    examined = Examined(index=index, name=source.name(index))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about files that are examined here anyway
        try:
            record = source.record(index)
        except InputError as error:
            examined.faults.append(Fault("unreadable", "", str(error)))
            return examined
        found, raw = _examine_image(record, examined), _examine_label(record, examined)
    if raw is not None:
        examined.faults += _id_faults(raw, source.layout.lookup, record.label_path)
    if found is not None and raw is not None:
        examined.faults += _fit_faults(*found, raw, record)
    return examined


def _examine_image(record: Record, examined: Examined) -> tuple[tuple[int, int], int] | None:
    """Return the upright image's size and its orientation, or None where it cannot be decoded."""
    form, mode, frames = _header(record.image)
    try:
        image, orientation = decode_turned(record.image, where=record.image_path)
    except Exception as error:  # also what a decoder's own bug may raise
        examined.faults.append(_unreadable("image", form, record.image_path, error))
        return None
    if mode != "RGB":
        examined.faults.append(Fault("image_form", form, record.image_path))
    if frames > 1:
        examined.faults.append(Fault("frames", "", f"{record.image_path} ({frames} frames)"))
    digest = hashlib.sha256(image.data)
    digest.update(str(image.shape).encode())
    examined.digest = digest.digest()
    examined.dhash = difference_hash(image)
    return image.shape[:2], orientation


def _examine_label(record: Record, examined: Examined) -> Label | None:
    form, mode, _ = _header(record.label)
    try:
        raw = decode_label(record.label, where=record.label_path)
    except Exception as error:  # also what a decoder's own bug may raise
        examined.faults.append(_unreadable("label", form, record.label_path, error))
        return None
    if mode == "P":
        examined.faults.append(Fault("palette", "", record.label_path))
    counts = count_stored(raw)
    examined.stored = {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    return raw


def _header(content: bytes) -> tuple[str, str, int]:
    """Return what the file is ("PNG of mode L, stored as L;4"), its mode, its number of frames."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            stored = stored_form(image)
            as_stored = f", stored as {stored}" if image.format == "PNG" and ";" in stored else ""
            # An MPO, which many phones write as .jpg, holds previews beside its one photograph.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            return f"{image.format} of mode {image.mode}{as_stored}", image.mode, frames
    except Exception:  # decoding it says why
        return "no image", "", 1


def _fit_faults(
    size: tuple[int, int], orientation: int, raw: Label, record: Record
) -> Iterator[Fault]:
    """Tell how a label lies on its upright image."""
    turned = f"{record.image_path} (orientation {orientation})"
    if label_is_stored_grid(raw.shape, size, orientation):
        yield Fault("label_turned", "", turned)
    elif size != raw.shape:
        label_size, image_size = (f"{height}x{width}" for height, width in (raw.shape, size))
        detail = f"{record.label_path} is {label_size} (height x width), its image {image_size}"
        yield Fault("sizes", "", detail)
    elif orientation != 1:
        unclear = not swaps_sides(orientation) or size[0] == size[1]
        yield Fault("exif_unclear" if unclear else "exif", "", turned)


def _unreadable(which: str, form: str, path: str, error: Exception) -> Fault:
    known = isinstance(error, InputError)
    detail = str(error) if known else f"{path}: the decoder failed ({error!r})"
    return Fault(f"{which}_unreadable", form, detail)


def _id_faults(raw: Label, lookup: UInt8[np.ndarray, "256"], path: str) -> Iterator[Fault]:
    label = lookup[raw]
    if (label == IGNORE).all():
        yield Fault("ignored", "", path)
    stray = label == STRAY
    if stray.any():
        y, x = (int(i) for i in np.argwhere(stray)[0])
        ids, counts = np.unique(raw[stray], return_counts=True)
        pixels = ", ".join(f"{i} ({n} px)" for i, n in zip(ids, counts, strict=True))
        yield Fault("stray", "", f"{path}: {raw[y, x]} at pixel (y={y}, x={x}); in all {pixels}")


def difference_hash(image: Pixels) -> int:
    """Return 64 bits that tell, on a grid of 8x9 mean grays, where it gets brighter to the right.

    The bits hardly change when an image is scaled or compressed again (dHash, N. Krawetz 2013).
    """
    small = Image.fromarray(image).resize((9, 8), Image.Resampling.BOX)
    gray = np.asarray(small.convert("L"))
    return int.from_bytes(np.packbits(gray[:, 1:] > gray[:, :-1]).tobytes(), "big")
