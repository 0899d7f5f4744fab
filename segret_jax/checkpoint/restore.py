"""Restoring the state of a run from one of its checkpoints."""

import dataclasses
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from segret_jax.checkpoint.model import load_format, restorable
from segret_jax.checkpoint.reading import (
    UnreadableError,
    check_sums,
    read_arrays,
    read_stored_json,
    reading,
    structure_difference,
)
from segret_jax.checkpoint.state import TrainState
from segret_jax.checkpoint.stored_state import from_stored, stored_like
from segret_jax.errors import InputError
from segret_jax.parallel import processes

ITEMS = ("model", "training")


def restore(manager: ocp.CheckpointManager, checkpoint: Path, like: TrainState) -> TrainState:
    """Return the state in `checkpoint`, which `manager` wrote.

    Args:
        manager: The manager of the run's checkpoints.
        checkpoint: The checkpoint's folder, of any format up to this version's.
        like: The structure, shapes and placement of the state.

    Raises:
        UnreadableError: A file is missing, an array is not what was saved, or reading it fails.
        InputError: It was written by a newer version, or holds other arrays than `like`.
    """
    version = load_format(checkpoint)
    for item in ("config", "classes"):
        if not (checkpoint / item / "metadata").is_file():
            raise UnreadableError(f"{checkpoint / item / 'metadata'} is missing")
    sums = read_stored_json(checkpoint / "sums") if version > 0 else None
    expected = dict(zip(ITEMS, items_of(stored_like(like, version)), strict=True))
    _check_structure(checkpoint, expected)
    _check_together(checkpoint, sums, weighted=version > 1)
    arguments = {item: ocp.args.StandardRestore(restorable(x)) for item, x in expected.items()}
    with reading():
        restored = manager.restore(int(checkpoint.name), args=ocp.args.Composite(**arguments))
    if sums:
        for item in ITEMS:
            check_sums(restored[item], sums[item], weighted=version > 1)
    return from_stored(_joined(restored.model, restored.training), version)


def items_of(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a state into the items `model` and `training`.

    With averaged weights these are the model, and those in training go with the optimizer's state.
    """
    training = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    if training.pop("ema") is None:
        del training["params"], training["batch_stats"]
    return state.model, training


def _joined(model: dict[str, Any], training: dict[str, Any]) -> TrainState:
    """Undo `items_of`."""
    if "params" in training:
        return TrainState(**training, ema=model)
    return TrainState(**training, **model, ema=None)


def _check_structure(checkpoint: Path, expected: dict[str, Any]) -> None:
    for item, tree in expected.items():
        if difference := structure_difference(checkpoint / item, tree):
            raise InputError(
                f"{checkpoint} holds another training state than this version makes of this "
                f"config: {difference}. Go on with the version of segret_jax that wrote it, or "
                f"start from its weights: --config.init_from={checkpoint} and another --workdir"
            )


def _check_together(checkpoint: Path, sums: Any, *, weighted: bool) -> None:
    """Raise UnreadableError in all of several processes if the first cannot read a checkpoint.

    Each would read a part of its own, and one that alone meets a fault would leave the others
    waiting for it. So the first reads all of it before.
    """

    def check_alone() -> None:
        for item in ITEMS:
            with reading():
                stored = read_arrays(checkpoint / item)
            if sums:
                check_sums(stored, sums[item], weighted=weighted)

    if processes.are_several():
        processes.by_first(check_alone, refusal=UnreadableError)
