"""Weights to start training from: those of a checkpoint, strictly (`Config.init_from`).

Every tensor that both models have is taken as it is. What keeps its initial values, or is left
out, is said; anything else that differs is an error that lists it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from segret_jax.config import Config, ModelConfig, check_segmentation
from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError
from segret_jax.models.segret import SegRet
from segret_jax.training import checkpoint as checkpoints
from segret_jax.training.state import build, model_name
from segret_jax.training.workdir import longer_schedule

# Settings by which models of the same tensors, or some of the same, differ in what they compute.
MUST_AGREE = ("variant", "decay", "rotary", "ffn_conv", "zero_branch")


@dataclass(frozen=True)
class Start:
    """The model before the first step; `notes` say in words where its weights come from.

    For a run that goes on with more steps they name the new schedule.
    """

    graph: nnx.GraphDef[SegRet]
    params: Any
    batch_stats: Any
    notes: tuple[str, ...] = ()


def initialise(config: Config, table: ClassTable, workdir: Path) -> Start:
    """Build the model that a run in `workdir` starts with, from `config.init_from` if given.

    A run that goes on has its own checkpoint: other weights are not read. Raises InputError if
    they are of another model, and for a model that cannot be trained.
    """
    check_segmentation(config.model)
    start = Start(*build(config.model, table.num_classes, seed=config.train.seed))
    if checkpoints.saved_in(workdir):
        return replace(start, notes=longer_schedule(workdir, config))
    if not config.init_from:
        return start
    return start_from(Path(config.init_from).expanduser(), config.model, table, start)


def start_from(path: Path, model: ModelConfig, table: ClassTable, start: Start) -> Start:
    """Replace the initial values of a `model` for the classes of `table` by a checkpoint's.

    `path` is a checkpoint's or a run's folder. Of a classifier the encoder is taken; of a
    segmentation model with another number of classes all but the last layer.
    """
    checkpoint = checkpoints.find(path)
    config = checkpoints.load_config(checkpoint)
    _check_settings(checkpoint, config.model, model)
    _, *trees = checkpoints.load_model(checkpoint, config)
    theirs = _flatten(dict(zip(("params", "batch_stats"), trees, strict=True)))
    ours = {"params": start.params, "batch_stats": start.batch_stats}

    is_classifier = config.model.task == "classification"
    same_count = checkpoints.load_table(checkpoint).num_classes == table.num_classes

    def is_shared(name: str) -> bool:
        if is_classifier:
            return "/encoder/" in name and (model.ffn_conv or "/ffn/dwconv/" not in name)
        return same_count or "/decoder/classify/" not in name

    taken = {name: leaf for name, leaf in theirs.items() if is_shared(name)}
    _check_tensors(checkpoint, taken, {n: x for n, x in _flatten(ours).items() if is_shared(n)})
    filled = jax.tree_util.tree_map_with_path(lambda p, leaf: taken.get(_name(p), leaf), ours)
    notes = _classifier_notes if is_classifier else _segmentation_notes
    return Start(start.graph, **filled, notes=notes(checkpoint, model, table))


def _check_settings(checkpoint: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    """Refuse another model; what SegRet's plain encoder leaves out of a classifier's may differ."""
    keys: tuple[str, ...] = MUST_AGREE
    if theirs.task == "classification":
        plain = tuple(k for k in ("rotary", "ffn_conv") if not getattr(ours, k))
        keys = tuple(k for k in keys if k not in ("zero_branch", *plain))
    different = [k for k in keys if getattr(theirs, k) != getattr(ours, k)]
    if different:
        listed = ", ".join(
            f"model.{k} ({getattr(theirs, k)} there, {getattr(ours, k)} here)" for k in different
        )
        remedy = " ".join(f"--config.model.{k}={getattr(theirs, k)}" for k in different)
        raise InputError(
            f"init_from: {checkpoint} holds another {model_name(theirs)}: {listed}. "
            f"Give {remedy}, or other weights"
        )


def _check_tensors(checkpoint: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differences = [
        f"{name} is {_shape(theirs, name)} there, {_shape(ours, name)} here"
        for name in sorted(theirs.keys() | ours.keys())
        if _shape(theirs, name) != _shape(ours, name)
    ]
    if differences:
        raise InputError(
            f"init_from: {len(differences)} tensors of {checkpoint} do not fit this model: "
            f"{'; '.join(differences)}. Give its model settings, or other weights"
        )


def _shape(tensors: dict[str, Any], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "missing"


def _classifier_notes(checkpoint: Path, model: ModelConfig, table: ClassTable) -> tuple[str, ...]:
    theirs = checkpoints.load_config(checkpoint).model
    first = f"started from the classifier {checkpoint}: its encoder; the decoder starts anew"
    parts = {"rotary": "the rotation of queries and keys", "ffn_conv": "the FFN's convolutions"}
    lost = [key for key in parts if getattr(theirs, key) and not getattr(model, key)]
    if not lost:
        return (first,)
    return (
        first,
        f"WARNING: LEFT OUT of that encoder: {' and '.join(parts[key] for key in lost)}, so it no "
        "longer computes what it was trained to (SegRet's released code does the same); "
        f"{' '.join(f'--config.model.{key}=true' for key in lost)} would keep them",
    )


def _segmentation_notes(checkpoint: Path, model: ModelConfig, table: ClassTable) -> tuple[str, ...]:
    theirs, note = checkpoints.load_table(checkpoint), f"started from {checkpoint}"
    if theirs.num_classes != table.num_classes:
        note += (
            f": all but the last layer, which starts anew for {table.num_classes} classes "
            f"instead of {theirs.num_classes}"
        )
    elif theirs.class_names != table.class_names:
        note += f", last layer included, though its classes ({theirs.name}) have other names"
    return (note,)


def _flatten(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
