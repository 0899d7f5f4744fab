"""The files of a result: metrics.json, per_image.npz, the confusion matrix, and gallery.npz.

per_image.npz has the pixel counts of each image, from which scores can be computed again and
compared. metrics.json holds the hash of its per_image.npz, since the two can be mixed up.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segret_jax.checkpoint.folders import FOLDER as CHECKPOINTS
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.data.sources import RecordSource, Source
from segret_jax.errors import InputError
from segret_jax.evaluation import gallery
from segret_jax.evaluation.confusion import picture, write_csv
from segret_jax.evaluation.evaluate import Result
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.pixel_counts import PixelCounts
from segret_jax.evaluation.protocol import fingerprint, identify
from segret_jax.files import atomic_write, disk_errors_as_input_errors, make_folder, read_bytes
from segret_jax.run.description import DESCRIPTION
from segret_jax.visualize.pictures import save_png

METRICS = "metrics.json"
PER_IMAGE = "per_image.npz"
CONFUSION = ("confusion.csv", "confusion.png")
REPORT = "report.html"  # a page of the result; see `report.page`
KEYS = ("names", "intersection", "label_area", "pred_area")
Plain = dict[str, Any]  # values of JSON
RETRY = "evaluate again with segret eval"


@dataclass(frozen=True)
class SavedResult:
    """A result read from files: the scores, and the pixel counts in the order of `names`."""

    file: Path
    content: Plain
    names: list[str]
    images: PixelCounts

    @property
    def protocol(self) -> Plain:
        """The fingerprint; see `protocol.fingerprint`."""
        return self.content["protocol"]


def save(
    folder: Path,
    result: Result,
    predictor: Predictor,
    source: Source,
    *,
    config: Config,
    table: ClassTable,
    checkpoint: Path,
) -> Path:
    """Write a result into `folder` and return the path of metrics.json.

    Args:
        folder: The folder, created if it does not exist.
        result: The scores of `predictor` on `source`.
        predictor: The model, whose weights and devices are recorded.
        source: The validation images.
        config: The config, whose settings of data, model and evaluation are recorded.
        table: The classes.
        checkpoint: The path to record.

    Raises:
        InputError: The disk refuses.
    """
    counted = result.confusion
    names = [source.name(int(index)) for index in np.flatnonzero(counted.counted)]
    protocol = fingerprint(
        config,
        table,
        split="validation",
        names=names,
        label_pixels=counted.images.label,
        is_stretched=result.num_stretched > 0,
        lookup=source.layout.lookup if isinstance(source, RecordSource) else None,
        variables=predictor.variables,
        devices=predictor.mesh.devices.flatten().tolist(),
    )
    content = {"checkpoint": str(checkpoint), **result.to_dict(table)}
    file = write(folder, content, protocol=protocol, names=names, images=counted.images)
    as_csv, as_png = (folder / name for name in CONFUSION)
    write_csv(counted.counts, table.class_names, as_csv)
    save_png(picture(counted.counts, table.class_names), as_png)
    gallery.save(folder, result.reduced_maps, source, table.colors)
    return file


def default_folder(checkpoint: Path) -> Path:
    """Return RUN/evaluation for a checkpoint of a run, else a folder beside the checkpoint."""
    path = Path(os.path.abspath(checkpoint))  # links kept: their target may be another's folder
    converted = (path / "source").is_dir()
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and not converted:
        return path.parent.parent / "evaluation"
    return path.with_name(f"{path.name}_evaluation")


def prepare_folder(folder: Path, known: Plain) -> None:
    """Create the folder of a result before the evaluation.

    Args:
        folder: The folder where `save` will write.
        known: The result of `protocol.known_in_advance`.

    Raises:
        InputError: The folder cannot be written, or holds a file of the user or the result of
            another checkpoint, of other data or other settings.
    """
    names = (METRICS, PER_IMAGE, *CONFUSION, gallery.GALLERY, REPORT, DESCRIPTION)
    files = [folder / name for name in names]
    if present := [file for file in files if os.path.lexists(file)]:
        _check_same(folder, present[0], known)
    with disk_errors_as_input_errors(f"to {folder}"):
        make_folder(folder)


def _check_same(folder: Path, present: Path, known: Plain) -> None:
    try:
        content = json.loads((folder / METRICS).read_bytes())
    except (OSError, ValueError):
        content = None
    if not _is_result(content):
        raise InputError(
            f"{present} exists and is no result of segret eval: give another --out, or delete it"
        )
    stored = content["protocol"]["may_differ"] | content["protocol"]["must_agree"]
    if content.get("faults"):  # some images were left out, perhaps again
        stored.pop("images", None)
    for key in known:
        if stored.get(key, known[key]) != known[key]:
            is_hash = key in ("weights", "images", "classes")
            there = f"other {key}" if is_hash else f"{key} {stored[key]!r}, not {known[key]!r}"
            raise InputError(
                f"{folder} holds the result of {content.get('checkpoint')} ({there}), which is not "
                "replaced: give another --out, or delete that folder"
            )


def write(
    folder: Path, content: Plain, *, protocol: Plain, names: Sequence[str], images: PixelCounts
) -> Path:
    """Write metrics.json and per_image.npz, each atomically; return the path of metrics.json.

    Args:
        folder: The folder, created if it does not exist.
        content: The scores.
        protocol: The result of `protocol.fingerprint`.
        names: The names of the images counted.
        images: The pixel counts of each, in the order of `names`.

    Raises:
        InputError: The disk refuses.
    """
    if len(names) != len(images.label):
        raise ValueError(f"{len(names)} names of {len(images.label)} images; give those counted")
    stored = io.BytesIO()
    arrays = (np.array(names, str), images.intersection, images.label, images.pred)
    np.savez_compressed(stored, allow_pickle=False, **dict(zip(KEYS, arrays, strict=True)))
    per_image = hashlib.sha256(stored.getvalue()).hexdigest()
    content = content | {"protocol": protocol, "per_image": per_image}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    for name, data in ((PER_IMAGE, stored.getvalue()), (METRICS, text)):
        with disk_errors_as_input_errors(folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / name, data)
    return folder / METRICS


def read(file: Path) -> SavedResult:
    """Read a metrics.json and the per_image.npz beside it.

    Raises:
        InputError: One is missing or damaged, the file is older than protocols, or the two do not
            belong together.
    """
    text = read_bytes(file, "; evaluate first, or give another file")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}); give a {METRICS}, or {RETRY}") from error
    if not _is_result(content):
        raise InputError(f"{file} does not say by which protocol it was made; {RETRY}")
    protocol = content["protocol"]
    if protocol["id"] != identify(protocol["must_agree"]):
        raise InputError(f"{file}: the protocol's id is not that of its settings; {RETRY}")
    beside = file.parent / PER_IMAGE
    stored = read_bytes(beside, f"; it belongs to {file.name}: put it there, or {RETRY}")
    if hashlib.sha256(stored).hexdigest() != content["per_image"]:
        raise InputError(f"{beside} does not belong to {file.name}, its hash differs; {RETRY}")
    with np.load(io.BytesIO(stored)) as arrays:
        names, *counts = (arrays[key] for key in KEYS)
    order = np.argsort(names, kind="stable")
    return SavedResult(file, content, names[order].tolist(), PixelCounts(*counts)[order])


def _is_result(content: Any) -> bool:
    """Return whether a file's content has the parts of what `write` writes that are read."""
    protocol = content.get("protocol") if isinstance(content, dict) else None
    if not isinstance(protocol, dict) or "id" not in protocol or "per_image" not in content:
        return False
    tables = protocol.get("must_agree"), protocol.get("may_differ"), content.get("classes")
    faults = content.get("faults", [])
    return all(isinstance(table, dict) for table in tables) and isinstance(faults, list)
