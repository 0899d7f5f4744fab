"""A step that was not finite, kept whole: what `segret replay` runs again.

A folder `nonfinite_STEP` with

    state            the train state before the step (Orbax); sums.json has its checksums and the
                     number of its form (`stored_state.FORMAT`)
    config.json      the resolved config; with the step it gives batch and randomness, too
    classes.json     the class table
    batch_I-of-N.npz the batch all the same, a share from each process: data can change
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from segret_jax import config as configs
from segret_jax.checkpoint.checksum import sums
from segret_jax.checkpoint.full_disk import raise_unless_disk, reason
from segret_jax.checkpoint.model import restorable
from segret_jax.checkpoint.reading import UnreadableError, check_sums, reading, structure_difference
from segret_jax.checkpoint.state import TrainState
from segret_jax.checkpoint.stored_state import FORMAT, from_stored, stored_like, to_stored
from segret_jax.config import Config
from segret_jax.data.class_table import (
    MOST_CLASSES,
    ClassTable,
    parse_class_table,
    read_json,
)
from segret_jax.errors import InputError
from segret_jax.files import write_whole, writing
from segret_jax.parallel import processes
from segret_jax.training.initialization import abstract_state

SHARE = re.compile(r"batch_(\d+)-of-(\d+)\.npz")
KEYS = ("image", "label", "index")


@dataclass(frozen=True)
class Captured:
    """What `write` was given, on one device; the batch is the global one, in its order."""

    config: Config
    table: ClassTable
    state: TrainState
    batch: dict[str, np.ndarray]


def write(
    folder: Path,
    *,
    state: TrainState,
    config: Config,
    table: ClassTable,
    batch: dict[str, np.ndarray],
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """Keep the `state` before a bad step and this process's share of that step's batch.

    All processes call it together. Raises InputError if the disk refuses.
    """
    stored = _plain(to_stored(replace(state, bad_step=jnp.full_like(state.bad_step, -1))))
    checksums = {"format": FORMAT, "sums": sums(stored)}  # by all processes together
    with writing(f"the step that was not finite to {folder}"):
        if process_index == 0:  # an earlier try may be of another number of processes
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            configs.save(config, folder / "config.json")
            write_whole(folder / "classes.json", json.dumps(table.to_dict()) + "\n")
            write_whole(folder / "sums.json", json.dumps(checksums) + "\n")
        processes.wait_for_all("folder for the step that was not finite")
        write_share(folder, batch, process_index, process_count)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save((folder / "state").absolute(), stored, force=True)
        except ValueError as error:
            raise_unless_disk(error)
            raise OSError(reason(error)) from error


def write_share(
    folder: Path, batch: dict[str, np.ndarray], process_index: int, process_count: int
) -> None:
    """Write one process's samples."""
    file = folder / f"batch_{process_index}-of-{process_count}.npz"
    np.savez(file, allow_pickle=False, **{key: batch[key] for key in KEYS})


def load(folder: Path) -> Captured:
    """Read what `write` wrote; InputError names what is missing or damaged."""
    config = configs.load(folder / "config.json")
    stored_table, where = read_json(folder / "classes.json")
    table = parse_class_table(stored_table, where, default_name="", most=MOST_CLASSES)
    batch = _load_batch(folder)
    return Captured(config, table, _load_state(folder, config, table), batch)


def _load_state(folder: Path, config: Config, table: ClassTable) -> TrainState:
    _, _, shapes = abstract_state(config, table.num_classes)
    where = folder / "state"
    try:
        with reading():
            saved = json.loads((folder / "sums.json").read_text(encoding="utf-8"))
        version = saved.get("format", 1)
        if version > FORMAT:
            raise InputError(f"{folder} was written by a newer version: update segret_jax")
        like = _plain(stored_like(restorable(shapes), version))
        if difference := structure_difference(where, like):
            raise InputError(f"{where} is not of this version and config.json: {difference}")
        with reading(), ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.restore(where.absolute(), like)
        check_sums(stored, saved["sums"] if version > 1 else saved, weighted=version > 1)
    except UnreadableError as error:
        raise InputError(f"{where} cannot be read ({error})") from error
    return from_stored(TrainState(**{"ema": None} | stored), version)


def _plain(state: TrainState) -> dict[str, Any]:
    """Return the state as a dict, without what is off."""
    fields = {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None}


def _load_batch(folder: Path) -> dict[str, np.ndarray]:
    """Join the shares, each sample in its place of the global batch."""
    found = {file: SHARE.fullmatch(file.name) for file in sorted(folder.glob("batch_*.npz"))}
    counts = {int(match[2]) for match in found.values() if match}
    if len(counts) != 1 or len(found) != counts.pop():
        raise InputError(f"{folder} should hold the batch's shares of all processes, batch_*.npz")
    shares = []
    for file in found:
        try:
            with file.open("rb") as opened, np.load(opened) as stored:
                shares.append({key: stored[key] for key in KEYS})
        except Exception as error:  # zip's and numpy's own, of whatever kind
            raise InputError(f"{file} is damaged") from error
    joined = {key: np.concatenate([share[key] for share in shares]) for key in KEYS}
    order = np.argsort(joined["index"])
    return {key: value[order] for key, value in joined.items()}
