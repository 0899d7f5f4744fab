"""Orbax checkpoints, each with the config that made it: their format, and how to read them.

A checkpoint is a folder `checkpoints/STEP` with the items

    model     parameters and batch statistics: all that evaluation reads
    training  step counters and optimizer state
    config    the resolved config
    classes   the class table: what the outputs mean
    data      number and names (their hash) of the training images
    sums      a checksum of each array
    format    the number of this format (`stored_state.FORMAT`); formats 0 and 1 have none

Nothing of the data loader is saved: the place in the data is the step. A checkpoint made of
converted weights, in any folder, has `source` (where they come from) and perhaps `kept` (tensors
that the model has no use for) in the place of the items `training`, `data` and `sums`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from segret_jax import config as configs
from segret_jax.checkpoint import disk_errors, reading
from segret_jax.checkpoint.reading import UnreadableError
from segret_jax.checkpoint.stored_state import FORMAT
from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError
from segret_jax.models.factory import ModelBundle


def save_model(
    folder: Path,
    *,
    config: configs.Config,
    table: ClassTable,
    bundle: ModelBundle,
    source: dict[str, Any],
    kept: dict[str, np.ndarray] | None = None,
) -> None:
    """Write a model without training state as a checkpoint; it appears complete or not at all.

    Args:
        folder: The checkpoint's folder, which must not exist.
        config: The config; evaluation reads `config.model`, `config.data` and `config.eval`.
        table: The classes of the outputs.
        bundle: The model, with float32 arrays.
        source: Values for JSON that name the origin of the weights.
        kept: Arrays for `load_kept` that the model does not use.

    Raises:
        InputError: `folder` exists, or the disk refuses.
    """
    if folder.exists():
        raise InputError(f"{folder} exists: choose another folder")
    items = {
        "model": ocp.args.StandardSave(bundle.arrays),
        "source": ocp.args.JsonSave(source),
        **description(config, table),
    }
    if kept:
        items["kept"] = ocp.args.StandardSave(kept)
    try:
        disk_errors.check_space(folder.absolute().parent, (bundle, kept))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute(), args=ocp.args.Composite(**items))
    except (OSError, ValueError) as error:
        reason = disk_errors.disk_error_reason(error)
        disk_errors.remove_partial_checkpoint(folder)
        raise InputError(
            f"{folder} was not written ({reason}): free some space or choose another folder"
        ) from error


def description(config: configs.Config, table: ClassTable) -> dict[str, ocp.args.JsonSave]:
    """Return the items that say what a checkpoint holds, and its format."""
    return {
        "config": ocp.args.JsonSave(dataclasses.asdict(config)),
        "classes": ocp.args.JsonSave(table.to_dict()),
        "format": ocp.args.JsonSave({"format": FORMAT}),
    }


def load_kept(checkpoint: Path) -> dict[str, np.ndarray]:
    """Read the arrays that `save_model` was given to keep; empty if there were none."""
    folder = (checkpoint / "kept").absolute()
    if not folder.is_dir():
        return {}
    try:
        with reading.damage_as_unreadable():
            return dict(reading.read_arrays(folder))
    except UnreadableError as error:
        raise InputError(f"{folder} cannot be read ({error}): convert the weights again") from error


def load_format(checkpoint: Path) -> int:
    """Return the number of a checkpoint's format, as listed in `stored_state`.

    Raises:
        InputError: The format is newer than this version's.
        UnreadableError: The number cannot be read.
    """
    if (checkpoint / "format").is_dir():
        version = int(reading.read_stored_json(checkpoint / "format")["format"])
        if version > FORMAT:
            raise InputError(
                f"{checkpoint} was written by a newer version of segret_jax (format {version}, "
                f"this one reads up to {FORMAT}): update segret_jax"
            )
        return version
    if not ((checkpoint / "sums").is_dir() or (checkpoint / "data").is_dir()):
        return 0
    if "format" in reading.read_stored_json(checkpoint / "sums"):
        raise UnreadableError(f"{checkpoint / 'format'} is missing")
    return 1


def load_model(checkpoint: Path, bundle: ModelBundle, *, what: str, remedy: str) -> ModelBundle:
    """Read the arrays of a checkpoint's model.

    Args:
        checkpoint: The folder.
        bundle: The model, with shapes in the place of arrays.
        what: What the bundle is, for an error.
        remedy: What to do if the checkpoint holds something else.

    Raises:
        InputError: The checkpoint is damaged, of a newer version, or of another model.
    """
    target = restore_targets(bundle.arrays)
    folder = (checkpoint / "model").absolute()
    try:
        version = load_format(checkpoint)
        if difference := reading.structure_difference(folder, target):
            raise InputError(f"{checkpoint} does not hold {what}: {difference}; {remedy}")
        with reading.damage_as_unreadable(), ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder, target)
        if version > 0 and not (checkpoint / "source").is_dir():
            expected = reading.read_stored_json(checkpoint / "sums")["model"]
            reading.verify_checksums(restored, expected, weighted=version > 1)
    except UnreadableError as error:
        raise InputError(
            f"{checkpoint} cannot be loaded ({error}): give another checkpoint of that run, or "
            "copy this one again from where it was made"
        ) from error
    return ModelBundle(bundle.graph, **restored)


def restore_targets(tree: Any) -> Any:
    """Return what Orbax restores arrays by: shapes, placed as they are, else on one device."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
