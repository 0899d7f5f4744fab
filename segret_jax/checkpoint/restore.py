"""The state of a run as the items of a checkpoint, and back."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import orbax.checkpoint as ocp

from segret_jax.checkpoint import reading
from segret_jax.checkpoint.checksum import sums
from segret_jax.checkpoint.orbax_model import description, load_format, restore_targets
from segret_jax.checkpoint.reading import UnreadableError
from segret_jax.checkpoint.state import TrainState
from segret_jax.checkpoint.stored_state import FORMAT, from_stored, stored_like, to_stored
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.errors import InputError
from segret_jax.parallel import processes

ITEMS = ("model", "training")


def restore(checkpoint: Path, like: TrainState) -> TrainState:
    """Restore the state in `checkpoint`.

    Args:
        checkpoint: The checkpoint's folder, of any format up to this version's.
        like: The structure, shapes and sharding of the state.

    Raises:
        UnreadableError: A file is missing, an array is not what was saved, or reading it fails.
        InputError: It was written by a newer version, or holds other arrays than `like`.
    """
    version = load_format(checkpoint)
    for item in ("config", "classes"):
        if not (checkpoint / item / "metadata").is_file():
            raise UnreadableError(f"{checkpoint / item / 'metadata'} is missing")
    saved = reading.read_stored_json(checkpoint / "sums") if version > 0 else None
    expected = dict(zip(ITEMS, items_of(stored_like(like, version)), strict=True))
    for item, tree in expected.items():
        if difference := reading.structure_difference(checkpoint / item, tree):
            raise InputError(
                f"{checkpoint} holds another training state than this version makes of this "
                f"config: {difference}. Resume with the version of segret_jax that wrote it, or "
                f"start from its weights: --config.init_from={checkpoint} and another --workdir"
            )
    _check_together(checkpoint, saved, weighted=version > 1)
    restored = {}
    for item, tree in expected.items():
        with reading.damage_as_unreadable(), ocp.StandardCheckpointer() as checkpointer:
            folder = (checkpoint / item).absolute()
            restored[item] = checkpointer.restore(folder, restore_targets(tree))
        if saved:
            reading.verify_checksums(restored[item], saved[item], weighted=version > 1)
    model, training = restored["model"], restored["training"]
    rest = {"ema": model} if "params" in training else {**model, "ema": None}
    return from_stored(TrainState(**training, **rest), version)


def items_to_save(state: TrainState, config: Config, table: ClassTable) -> dict[str, Any]:
    """Return what Orbax saves, by item: the state, the config and the classes."""
    model, training = items_of(to_stored(state))
    training["bad_step"] = jnp.full_like(state.bad_step, -1)  # the saved state is the one before it
    checksums = {"format": FORMAT, "model": sums(model), "training": sums(training)}
    return {
        "model": ocp.args.StandardSave(model),
        "training": ocp.args.StandardSave(training),
        "sums": ocp.args.JsonSave(checksums),
        **description(config, table),
    }


def items_of(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a state into the items `model` and `training`.

    Averaged weights are the model; the parameters being trained then go with the optimizer's state.
    """
    training = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    if training.pop("ema") is None:
        del training["params"], training["batch_stats"]
    return state.model, training


def _check_together(checkpoint: Path, saved: Any, *, weighted: bool) -> None:
    """Raise UnreadableError in all processes if the primary one cannot read a checkpoint.

    Each process restores a part of its own, and an error in one of them would leave the others
    waiting. So the primary one reads everything first.
    """

    def check_alone() -> None:
        for item in ITEMS:
            with reading.damage_as_unreadable():
                stored = reading.read_arrays(checkpoint / item)
            if saved:
                reading.verify_checksums(stored, saved[item], weighted=weighted)

    if processes.is_multiprocess():
        processes.run_on_primary(check_alone, refusal=UnreadableError)
