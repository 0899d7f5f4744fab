"""Read a model from a checkpoint of a run or of converted weights, or from a saved model."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from segret_jax import config as configs
from segret_jax.checkpoint import folders, pretrained
from segret_jax.data.class_table import MAX_CLASSES, ClassTable, parse_class_table, read_json
from segret_jax.errors import InputError
from segret_jax.models.config import ModelConfig, model_name
from segret_jax.models.factory import ModelBundle, abstract
from segret_jax.models.kernels import platform_of
from segret_jax.settings import flatten, rules
from segret_jax.trees import named_leaves


def load_config(checkpoint: Path) -> configs.Config:
    """Read the config of a checkpoint or a saved model.

    Raises:
        InputError: It is not one, or of a newer format.
    """
    if folders.is_saved_model(checkpoint):
        return pretrained.read_description(checkpoint).config
    from segret_jax.checkpoint import orbax_model  # Orbax takes a quarter of a second to import

    with suppress(orbax_model.UnreadableError):  # `load_model` reports it
        orbax_model.load_format(checkpoint)
    return configs.load(checkpoint / "config" / "metadata")


def load_table(checkpoint: Path) -> ClassTable:
    """Read the class table of a checkpoint or a saved model; InputError if it is not one."""
    if folders.is_saved_model(checkpoint):
        return pretrained.read_description(checkpoint).table
    file = checkpoint / "classes" / "metadata"
    return parse_class_table(*read_json(file), default_name="", most=MAX_CLASSES)


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
    theirs = load_config(checkpoint).model
    check_settings(checkpoint, theirs, config.model)
    if folders.is_saved_model(checkpoint):
        return _load_saved_model(checkpoint, bundle)
    from segret_jax.checkpoint import orbax_model

    what = f"{model_name(config.model)} with {num_classes} classes"
    remedy = "without --config the config saved with it is used"
    if theirs == config.model:
        remedy = "use the version of segret_jax that wrote it"
    return orbax_model.load_model(checkpoint, bundle, what=what, remedy=remedy)


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
    arrays = {name: np.asarray(x) for name, x in named_leaves(bundle.arrays).items()}
    pretrained.write(
        folder, config=config, table=table, arrays=arrays, facts=facts, card=card, dtype=dtype
    )


def _load_saved_model(folder: Path, bundle: ModelBundle) -> ModelBundle:
    """Read the arrays of a saved model into `bundle`, which holds their shapes."""
    description, device = pretrained.read_description(folder), jax.local_devices()[0]
    shapes = {name: x.shape for name, x in named_leaves(bundle.arrays).items()}
    arrays = pretrained.read_arrays(folder, shapes, description.sha256)
    leaves = [jax.device_put(arrays[name], device) for name in shapes]
    restored = jax.tree.unflatten(jax.tree.structure(bundle.arrays), leaves)
    return ModelBundle(bundle.graph, **restored)
