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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from segret_jax import config as configs
from segret_jax.checkpoint import disk_errors, folders, pretrained, reading
from segret_jax.checkpoint.reading import UnreadableError
from segret_jax.checkpoint.stored_state import FORMAT
from segret_jax.data.class_table import MAX_CLASSES, ClassTable, parse_class_table, read_json
from segret_jax.errors import InputError
from segret_jax.models.config import ModelConfig, model_name
from segret_jax.models.factory import ModelBundle, abstract
from segret_jax.models.kernels import platform_of
from segret_jax.settings import flatten, rules
from segret_jax.trees import named_leaves


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
        "model": ocp.args.StandardSave(_stored(bundle)),
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


def load_config(checkpoint: Path) -> configs.Config:
    """Read the config of a checkpoint or a saved model.

    Raises:
        InputError: It is not one, or of a newer format.
    """
    if folders.is_saved_model(checkpoint):
        return pretrained.read_description(checkpoint).config
    with suppress(UnreadableError):  # `load_model` reports it
        load_format(checkpoint)
    return configs.load(checkpoint / "config" / "metadata")


def load_table(checkpoint: Path) -> ClassTable:
    """Read the class table of a checkpoint or a saved model; InputError if it is not one."""
    if folders.is_saved_model(checkpoint):
        return pretrained.read_description(checkpoint).table
    file = checkpoint / "classes" / "metadata"
    return parse_class_table(*read_json(file), default_name="", most=MAX_CLASSES)


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


def check_table(checkpoint: Path, table: ClassTable) -> None:
    """Raise InputError unless the classes of a checkpoint are those of `table`, in its order.

    Further outputs may follow, which are no classes of a dataset (`ClassTable.extends`).
    """
    theirs = load_table(checkpoint)
    if not theirs.extends(table):
        pairs = enumerate(zip(theirs.class_names, table.class_names, strict=False))
        first = next((f"class {i} is {a} there, {b} here" for i, (a, b) in pairs if a != b), "")
        raise InputError(
            f"{checkpoint} was trained on the {theirs.num_classes} classes of {theirs.name}, but "
            f"the dataset {table.name} has {table.num_classes}: {first or 'some are missing'}"
        )


def check_settings(
    checkpoint: Path, theirs: ModelConfig, ours: ModelConfig, may_differ: Sequence[str] = ()
) -> None:
    """Raise InputError for weights of another model, except for the settings `may_differ`."""
    if theirs.family != ours.family:
        raise InputError(
            f"{checkpoint} is of the family {theirs.family}, the config of {ours.family}: "
            f"give --config.model.family={theirs.family}, or other weights"
        )
    there, here = flatten(theirs), flatten(ours)
    different = [
        key
        for key, rule in rules(ours).items()
        if rule.shared and there.get(key) != here[key] and key.split(".")[-1] not in may_differ
    ]
    if different:
        listed = ", ".join(f"model.{k} ({there.get(k)} there, {here[k]} here)" for k in different)
        remedy = " ".join(f"--config.model.{k}={there.get(k)}" for k in different)
        raise InputError(
            f"the weights of {checkpoint} are for another model: {listed}. "
            f"Give {remedy}, or other weights"
        )


def load_model(checkpoint: Path, config: configs.Config) -> ModelBundle:
    """Read the model of a checkpoint or a saved model, for the devices of this process.

    Args:
        checkpoint: The folder, such as `folders.find` returns.
        config: The model's config, such as that of `load_config`.

    Returns:
        The model on one device.

    Raises:
        InputError: The checkpoint is damaged, of a newer version, or of another model.
    """
    num_classes = load_table(checkpoint).num_classes
    bundle = abstract(config.model, num_classes, platform=platform_of(jax.local_devices()))
    if folders.is_saved_model(checkpoint):
        return _load_saved_model(checkpoint, config, bundle)
    target = restore_targets(_stored(bundle))
    folder = (checkpoint / "model").absolute()
    try:
        version = load_format(checkpoint)
        check_settings(checkpoint, theirs := load_config(checkpoint).model, config.model)
        if difference := reading.structure_difference(folder, target):
            remedy = "without --config the config saved with it is used"
            if theirs == config.model:
                remedy = "use the version of segret_jax that wrote it"
            raise InputError(
                f"{checkpoint} does not hold {model_name(config.model)} with {num_classes} classes"
                f": {difference}; {remedy}"
            )
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


def save_pretrained(
    folder: Path,
    *,
    config: configs.Config,
    table: ClassTable,
    bundle: ModelBundle,
    facts: dict[str, Any],
    card: str,
    dtype: str,
) -> None:
    """Write a model as a saved model; see `pretrained.write`."""
    arrays = {name: np.asarray(x) for name, x in named_leaves(_stored(bundle)).items()}
    pretrained.write(
        folder, config=config, table=table, arrays=arrays, facts=facts, card=card, dtype=dtype
    )


def _load_saved_model(folder: Path, config: configs.Config, bundle: ModelBundle) -> ModelBundle:
    """Read the arrays of a saved model into `bundle`, which holds their shapes."""
    description, device = pretrained.read_description(folder), jax.local_devices()[0]
    check_settings(folder, description.config.model, config.model)
    shapes = {name: x.shape for name, x in named_leaves(_stored(bundle)).items()}
    arrays = pretrained.read_arrays(folder, shapes, description.sha256)
    leaves = [jax.device_put(arrays[name], device) for name in shapes]
    restored = jax.tree.unflatten(jax.tree.structure(_stored(bundle)), leaves)
    return ModelBundle(bundle.graph, **restored)


def _stored(bundle: ModelBundle) -> dict[str, Any]:
    return {"params": bundle.params, "batch_stats": bundle.batch_stats}


def restore_targets(tree: Any) -> Any:
    """Return what Orbax restores arrays by: shapes, placed as they are, else on one device."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
