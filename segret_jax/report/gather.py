"""What the folder of a run or of a result holds, as far as it can be read."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

from segret_jax import config as configs
from segret_jax.data.folders import plural
from segret_jax.errors import InputError, shorten
from segret_jax.evaluation import gallery, results
from segret_jax.evaluation.gallery import GALLERY, GalleryImage
from segret_jax.evaluation.results import CONFUSION, METRICS, SavedResult
from segret_jax.files import damage_as_input_errors, read_json_object
from segret_jax.run.description import DESCRIPTION
from segret_jax.run.workdir import CONFIG, STATUS
from segret_jax.settings import flatten

LOG = "metrics.jsonl"
STATES = ("running", "stopped", "finished", "failed")
REMEDY = "it is left out of the report"
MAX_LOG = 2**28  # bytes

Record = dict[str, Any]  # a line of metrics.jsonl
T = TypeVar("T")


@dataclass(kw_only=True)
class RunRecord:
    """A run, or the result of an evaluation; what is missing is empty or None."""

    folder: Path
    name: str
    status: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """The settings by key."""
    description: dict[str, Any] = field(default_factory=dict)
    """See `run.description`."""
    training: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    result: SavedResult | None = None
    counts: Int64[np.ndarray, "k k"] | None = None
    """The confusion matrix [label, prediction] in pixels."""
    images: list[GalleryImage] = field(default_factory=list)
    colors: UInt8[np.ndarray, "k 3"] | None = None
    notes: list[str] = field(default_factory=list)
    """A line for each file that cannot be read."""

    @property
    def class_names(self) -> list[str]:
        return [*self.result.content["classes"]] if self.result else []

    def load(self, file: str, read: Callable[[Path], T]) -> T | None:
        """Return what `read` finds in a file of the folder; None, with a note, if it cannot."""
        path = self.folder / file
        if not path.exists():
            return None
        try:
            with damage_as_input_errors(path):
                return read(path)
        except InputError as error:
            self.notes.append(f"{shorten(str(error))}; {REMEDY}")
            return None


def gather(folder: Path) -> RunRecord:
    """Read the folder of a run, or of a result of `segret eval`.

    Raises:
        InputError: The folder is missing or neither of both.
    """
    path = folder.expanduser()
    if not path.is_dir():
        raise InputError(f"{folder} is no folder: give a run's, such as runs/demo")
    if not any((path / name).exists() for name in (CONFIG, LOG, METRICS)):
        raise InputError(
            f"{folder} holds no run ({CONFIG}, {LOG}) and no result of segret eval ({METRICS}): "
            "give a run's folder, such as runs/demo"
        )
    run = RunRecord(folder=path, name=_name(path.absolute()))
    run.status = run.load(STATUS, _read_status) or ""
    run.config = run.load(CONFIG, lambda file: flatten(configs.load(file))) or {}
    run.description = run.load(DESCRIPTION, lambda file: read_json_object(file, REMEDY)) or {}
    records = run.load(LOG, lambda file: _read_log(file, run.notes)) or []
    run.training = [one for one in records if one["kind"] == "train"]
    run.validation = [one for one in records if one["kind"] == "validation"]
    run.result = run.load(METRICS, results.read)
    if run.result:
        run.counts = run.load(CONFUSION[0], lambda file: _read_counts(file, run.class_names))
        run.images, run.colors = run.load(GALLERY, gallery.read) or ([], None)
        if run.colors is not None and len(run.colors) != len(run.class_names):
            run.images, run.colors = [], None  # of another evaluation
    return run


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.name == "evaluation" else path.name


def _read_status(file: Path) -> str:
    word = file.read_text(encoding="utf-8").strip()
    if word not in STATES:
        raise InputError(f"{shorten(word)!r} is no status")
    return word


def _read_log(file: Path, notes: list[str]) -> list[Record]:
    """Return the records; lines that are cut off or no records are counted in a note."""
    if file.stat().st_size > MAX_LOG:
        raise InputError(f"longer than {MAX_LOG} bytes")
    found, faulty = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            step, kind = int(record["step"]), str(record["kind"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            faulty += 1
            continue
        found.append(record | {"step": step, "kind": kind})
    if faulty:
        notes.append(f"{file}: {plural(faulty, 'line')} left out, cut off or no record")
    return found


def _read_counts(file: Path, class_names: list[str]) -> Int64[np.ndarray, "k k"]:
    with file.open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    if header[1:] != class_names:
        raise InputError("has other classes than metrics.json")
    counts = np.array([row[1:] for row in rows], np.int64)
    if counts.shape != 2 * (len(class_names),):
        raise InputError("is no square matrix")
    return counts


def values_of(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of those records that have a finite value of `key`."""
    pairs = [(one["step"], one.get(key)) for one in records]
    known = [
        (step, float(value))
        for step, value in pairs
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    return [step for step, _ in known], [value for _, value in known]


def sessions(run: RunRecord) -> list[tuple[int, float]]:
    """Return (last step, seconds) of each time that the run was started, in order.

    The clock of a record begins anew with its process.
    """
    found: list[tuple[int, float]] = []
    before = math.inf
    records = sorted(run.training + run.validation, key=lambda one: one["step"])
    steps, seconds = values_of(records, "seconds")
    for step, now in zip(steps, seconds, strict=True):
        if now < before:
            found.append((step, now))
        else:
            found[-1] = step, now
        before = now
    return found
