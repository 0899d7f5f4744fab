"""Store a step that was not finite, for `segret replay`.

A folder `nonfinite_STEP` holds

    state             a checkpoint of the state before the step
    batch_I-of-N.npz  the samples of process I of N in the step's batch: the data can change
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint import orbax_model
from segret_jax.checkpoint.disk_errors import disk_error_reason
from segret_jax.checkpoint.reading import UnreadableError
from segret_jax.checkpoint.restore import items_to_save, restore
from segret_jax.checkpoint.state import TrainState
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError
from segret_jax.files import disk_errors_as_input_errors
from segret_jax.parallel import processes
from segret_jax.training.initialization import abstract_state

Batch = dict[str, np.ndarray]
KEYS = ("image", "label", "index")


@dataclass(frozen=True)
class CapturedStep:
    """The arguments of `write`, on one device; the batch is the global one, in its order."""

    config: Config
    table: ClassTable
    state: TrainState
    batch: Batch


def write(
    folder: Path, *, state: TrainState, config: Config, table: ClassTable, batch: Batch
) -> None:
    """Write a step that was not finite; all processes call it together.

    Args:
        folder: The folder to write; what it holds is deleted.
        state: The state before the step.
        config: The run's config.
        table: The run's classes.
        batch: This process's samples of the step's batch.

    Raises:
        InputError: The disk refuses.
    """
    items = ocp.args.Composite(**items_to_save(state, config, table))  # by all together
    with disk_errors_as_input_errors(f"the step that was not finite to {folder}"):
        if processes.is_primary():  # an earlier try may be of another number of processes
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        processes.wait_for_all("folder for the step that was not finite")
        file = folder / f"batch_{jax.process_index()}-of-{jax.process_count()}.npz"
        np.savez(file, allow_pickle=False, **{key: batch[key] for key in KEYS})
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                checkpointer.save((folder / "state").absolute(), args=items, force=True)
        except ValueError as error:
            raise OSError(disk_error_reason(error)) from error


def load(folder: Path) -> CapturedStep:
    """Read what `write` wrote; InputError names what is missing or damaged."""
    checkpoint = folder / "state"
    config, table = checkpoints.load_config(checkpoint), checkpoints.load_table(checkpoint)
    batch = _load_batch(folder)
    _, _, shapes = abstract_state(config, table.num_classes)
    try:
        state = restore(checkpoint, orbax_model.restore_targets(shapes))
    except UnreadableError as error:
        raise InputError(f"{checkpoint} cannot be read ({error})") from error
    return CapturedStep(config, table, state, batch)


def _load_batch(folder: Path) -> Batch:
    """Return the global batch, with the samples in their order."""
    found = list(folder.glob("batch_*.npz"))
    expected = {folder / f"batch_{i}-of-{len(found)}.npz" for i in range(len(found))}
    if not found or set(found) != expected:
        raise InputError(f"{folder} should hold the samples of all processes, batch_*.npz")
    batches = []
    for file in found:
        try:
            with file.open("rb") as opened, np.load(opened) as stored:
                batches.append({key: stored[key] for key in KEYS})
        except Exception as error:  # zip's and numpy's own, of whatever kind
            raise InputError(f"{file} is damaged") from error
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in KEYS}
    order = np.argsort(joined["index"])
    return {key: value[order] for key, value in joined.items()}
