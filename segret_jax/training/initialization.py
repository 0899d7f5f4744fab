"""Initialize a run's model, from the weights of a checkpoint if asked (`Config.init_from`).

Every tensor that both models have is copied unchanged. Notes name what keeps its initial values or
is left out; any other difference is an error that lists it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from segret_jax import config as configs
from segret_jax.checkpoint import folders
from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint.state import TrainState, new_state
from segret_jax.config import Config, ModelConfig, check_segmentation
from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError
from segret_jax.models.factory import ModelBundle, abstract, build
from segret_jax.models.families import get_family
from segret_jax.models.kernels import ANY_PLATFORM, Platform
from segret_jax.run.workdir import CONFIG, newest_step
from segret_jax.training.optimizer import learning_rate_schedule, make_optimizer
from segret_jax.trees import named_leaves


class InitialModel(NamedTuple):
    """The model before the first step; `notes` say where its weights come from.

    For a run that continues with more steps they name the new schedule.
    """

    bundle: ModelBundle
    notes: tuple[str, ...] = ()


def initialize(
    config: Config, table: ClassTable, workdir: Path, *, platform: Platform
) -> InitialModel:
    """Build the model that a run in `workdir` starts with.

    With `config.init_from` its weights are those of that checkpoint: of a classifier the encoder,
    of a segmentation model with another number of classes all but the last layer. A resumed run
    has its own checkpoint: other weights are not read.

    Args:
        config: The run's config.
        table: The run's classes.
        workdir: The run's folder.
        platform: The devices that the model is built for.

    Raises:
        InputError: The weights are of another model, or the model cannot be trained.
    """
    model = config.model
    check_segmentation(model)
    bundle = build(model, table.num_classes, seed=config.train.seed, platform=platform)
    if folders.saved_in(workdir):
        return InitialModel(bundle, _longer_schedule(workdir, config))
    if not config.init_from:
        return InitialModel(bundle)
    checkpoint = folders.find(config.init_from)
    saved, their_table = checkpoints.load_config(checkpoint), checkpoints.load_table(checkpoint)
    family = get_family(model.family).load()
    transfer = family.classifier_transfer if saved.model.task == "classification" else None
    may_differ = transfer.may_differ(model) if transfer else ()
    checkpoints.check_settings(checkpoint, saved.model, model, may_differ)

    def is_taken(name: str) -> bool:
        if transfer:
            return transfer.takes(name, model)
        return their_table.num_classes == table.num_classes or family.last_layer not in name

    theirs, ours = named_leaves(checkpoints.load_model(checkpoint, saved)), named_leaves(bundle)
    taken, expected = (
        {name: leaf for name, leaf in leaves.items() if is_taken(name)} for leaves in (theirs, ours)
    )
    _check_tensors(checkpoint, taken, expected)
    filled = jax.tree.unflatten(jax.tree.structure(bundle), (ours | taken).values())
    if transfer:
        lost, count = transfer.lost(saved.model, model), f"{len(taken)} of {len(ours)} tensors"
        notes = _classifier_notes(checkpoint, count, lost, saved.model)
    else:
        notes = _segmentation_notes(checkpoint, their_table, table)
    return InitialModel(filled, notes)


def _check_tensors(checkpoint: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    there, here = ({name: x.shape for name, x in part.items()} for part in (theirs, ours))
    differences = [
        f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
        for name in sorted(there | here)
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise InputError(
            f"init_from: {len(differences)} tensors of {checkpoint} do not fit this model: "
            f"{'; '.join(differences)}. Give its model settings, or other weights"
        )


def _classifier_notes(
    checkpoint: Path, count: str, lost: dict[str, str], theirs: ModelConfig
) -> tuple[str, ...]:
    note = f"started from the classifier {checkpoint}: {count}; the others are initialized"
    values = {key: str(getattr(theirs.settings, key)).lower() for key in lost}
    flags = " ".join(f"--config.model.settings.{key}={value}" for key, value in values.items())
    warning = (
        f"WARNING: LEFT OUT of that classifier: {' and '.join(lost.values())}, so what was "
        f"taken no longer computes what it was trained to; {flags} would keep them"
    )
    return (note, warning) if lost else (note,)


def _segmentation_notes(checkpoint: Path, theirs: ClassTable, table: ClassTable) -> tuple[str, ...]:
    note = f"started from {checkpoint}"
    if theirs.num_classes != table.num_classes:
        note += (
            f": all but the last layer, which is initialized for {table.num_classes} classes "
            f"instead of {theirs.num_classes}"
        )
    elif theirs.class_names != table.class_names:
        note += f", last layer included, though its classes ({theirs.name}) have other names"
    return (note,)


def abstract_state(
    config: Config, num_classes: int, *, platform: Platform = ANY_PLATFORM
) -> tuple[nnx.GraphDef[Any], optax.GradientTransformation, TrainState]:
    """Return a run's graph, its optimizer and the shapes of its state."""
    bundle = abstract(config.model, num_classes, platform=platform)
    optimizer = make_optimizer(config.optim, config.train.steps, get_family(config.model.family))

    def create(params: Any, batch_stats: Any) -> TrainState:
        averaged = config.train.ema_decay > 0
        return new_state(params, batch_stats, optimizer, averaged=averaged)

    return bundle.graph, optimizer, jax.eval_shape(create, *bundle.variables)


def _longer_schedule(workdir: Path, config: Config) -> tuple[str, ...]:
    """Name the schedule that is followed if `config` has more steps than the run in `workdir` had.

    To be called before the folder is claimed, which saves the new config.
    """
    saved, start = workdir / CONFIG, newest_step(workdir)
    if not (start and saved.is_file()):
        return ()
    before, now = configs.load(saved).train.steps, config.train.steps
    if now <= before or start > before:
        return ()
    old, new = (float(learning_rate_schedule(config.optim, t)(start)) for t in (before, now))
    return (
        f"train.steps is {now}, was {before}: from step {start + 1} on the learning rate follows "
        f"the poly schedule of {now} steps ({old:.2e} -> {new:.2e} at that step)",
    )
