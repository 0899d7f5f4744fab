"""Orbax checkpoints: the newest few and the best by mIoU, each with the config that made it.

A checkpoint is a folder `checkpoints/STEP` with the items

    model     parameters and batch statistics: all that evaluation reads
    training  step counters and optimizer state
    config    the resolved config
    classes   the class table: what the outputs mean
    data      number and names (their hash) of the training images
    sums      a checksum of each array

Nothing of the data loader is saved: the place in the data is the step.

and one made of converted weights, in any folder, with `source` (where they come from) and perhaps
`kept` (tensors that the model has no use for) in the place of `training`.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import math
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from segret_jax import config as configs
from segret_jax import processes
from segret_jax.data.class_table import (
    MOST_CLASSES,
    ClassTable,
    parse_class_table,
    read_json,
)
from segret_jax.data.sources import Source
from segret_jax.errors import InputError
from segret_jax.files import write_whole
from segret_jax.training.checksum import differing_sums, sums
from segret_jax.training.state import Parts, TrainState, abstract, model_name

FOLDER = "checkpoints"
METRICS = Path("metrics", "metrics")  # where Orbax writes a checkpoint's scores


class Checkpoints:
    """The checkpoints of one working folder.

    They are written behind the training's back: `save` returns once the state is copied, and
    `finish` when it is on the disk. A checkpoint becomes visible only when it is whole.
    """

    def __init__(self, workdir: Path, config: configs.Config, table: ClassTable, data: Source):
        """`data` are the training images: a run goes on only with the same ones."""
        self.config, self.table = config, table
        self.data = _fingerprint(data)
        self.folder = (workdir / FOLDER).absolute()
        self._manager = self._open()
        self._writing: int | None = None  # the step whose checkpoint is not yet on the disk
        self._is_whole = True  # the last one

    def _open(self) -> ocp.CheckpointManager:
        preserve = [
            LatestN(self.config.train.keep_checkpoints),
            BestN(get_metric_fn=_mean_iou, n=1, keep_checkpoints_without_metrics=False),
        ]
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_mean_iou,
                best_mode="max",
                preservation_policy=AnyPreservationPolicy(preserve),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, or begun to be, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, mean_iou: float | None = None) -> None:
        """Begin to save `state`; where the disk refuses, `finish` tells."""
        step = int(state.step)
        self.finish()
        if step == self.latest_step:
            self._add_score(step, mean_iou)
            return
        self._writing, self._is_whole = step, True
        model, training = _items(state)
        training["bad_step"] = jnp.full_like(state.bad_step, -1)  # what is saved is before it
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            training=ocp.args.StandardSave(training),
            config=ocp.args.JsonSave(dataclasses.asdict(self.config)),
            classes=ocp.args.JsonSave(self.table.to_dict()),
            data=ocp.args.JsonSave(self.data),
            sums=ocp.args.JsonSave({"model": sums(model), "training": sums(training)}),
        )
        metrics = {} if mean_iou is None else {"mIoU": mean_iou}
        try:
            if not processes.are_several():  # which would have to refuse together
                _check_space(self.folder, (model, training))
            self._manager.save(step, args=items, metrics=metrics, force=True)
        except (OSError, ValueError) as error:
            self._refused(error)

    def finish(self) -> bool:
        """Wait until the last checkpoint is whole; return False, with a message, if it is not."""
        if self._writing is not None:
            try:
                self._manager.wait_until_finished()
                self._writing = None
            except (OSError, ValueError) as error:
                self._refused(error)
        return self._is_whole

    def _refused(self, error: OSError | ValueError) -> None:
        """Clear away what was written of the last checkpoint, and say so."""
        _raise_unless_disk(error)
        step, self._writing, self._is_whole = self._writing, None, False
        with suppress(Exception):  # it would raise the same error again at whatever is next
            self._manager.close()
        _remove_partial(self.folder / str(step))
        self._manager = self._open()
        logging.error(
            "checkpoint of step %d was not saved in %s (%s). Earlier checkpoints are whole; "
            "free some space or choose another --workdir",
            step, self.folder, _reason(error),
        )  # fmt: skip

    def _add_score(self, step: int, mean_iou: float | None) -> None:
        """Note a score that was not known when the step was saved: its evaluation was cut off."""
        if mean_iou is not None and not math.isnan(mean_iou) and processes.is_first():
            file = self.folder / str(step) / METRICS
            try:
                write_whole(file, json.dumps({"mIoU": mean_iou}))
            except OSError as error:  # the state itself is safe
                logging.error("the score of step %d was not saved (%s)", step, error.strerror)

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """Return the newest whole state, or None if none was saved.

        `like` gives structure, shapes and placement. A damaged checkpoint is named, moved out of
        the way, and the one before it taken. Raises InputError if all are damaged, which changes
        nothing, or if one is of other classes or other training images.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            fault = ""
            try:
                restored, data = self._restore(step, like)
            except DamagedError as error:
                fault = str(error)
            faults = [text.decode() for text in processes.gather(fault.encode())]
            if not any(faults):
                self._check_data(step, data)
                for other, its_fault in damaged.items():
                    self._set_aside(other, its_fault)
                return restored
            damaged[step] = next(filter(None, faults))
        if damaged:
            listed = "; ".join(f"{step}: {fault}" for step, fault in damaged.items())
            raise InputError(
                f"no checkpoint in {self.folder} is whole ({listed}): start anew in another "
                "--workdir"
            )
        return None

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any] | None]:
        model, training = _items(like)
        folder = self.folder / str(step)
        # Those of an earlier version have neither item: they are taken as they are.
        with_sums = (folder / "sums").is_dir() or (folder / "data").is_dir()
        checks = {"data": ocp.args.JsonRestore(), "sums": ocp.args.JsonRestore()}
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore(_abstract(model)),
            training=ocp.args.StandardRestore(_abstract(training)),
            **(checks if with_sums else {}),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # no fault of the checkpoint
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise  # the disk's, or the network's
            raise DamagedError(f"{error.filename or 'a file'} is missing") from error
        except Exception as error:  # Orbax's own, of whatever kind, for damaged files
            raise DamagedError(f"{type(error).__name__} while reading it") from error
        if not with_sums:
            return _joined(restored.model, restored.training), None
        for item in ("model", "training"):
            changed = differing_sums(restored[item], restored.sums[item])
            if changed:
                raise DamagedError(f"{changed[0]} is not what was saved")
        return _joined(restored.model, restored.training), restored.data

    def _set_aside(self, step: int, fault: str) -> None:
        if processes.is_first():
            folder = self.folder / str(step)
            aside = self.folder.parent / f"damaged_checkpoint_{step}"
            number = 1
            while aside.exists():
                number += 1
                aside = aside.with_name(f"damaged_checkpoint_{step}_{number}")
            logging.warning(
                "%s is damaged (%s): moved to %s; the checkpoint before it is used",
                folder, fault, aside,
            )  # fmt: skip
            folder.rename(aside)
        processes.wait_for_all("damaged checkpoint set aside")
        self._manager.reload()

    def _check_data(self, step: int, theirs: dict[str, Any] | None) -> None:
        """Raise InputError if a checkpoint was made with other classes or training images."""
        checkpoint = self.folder / str(step)
        check_table(checkpoint, self.table)
        if theirs is not None and theirs != self.data:
            raise InputError(
                f"{checkpoint} was trained on {theirs.get('images')} images, names "
                f"{str(theirs.get('names'))[:8]}, but data.root now holds {self.data['images']}, "
                f"names {self.data['names'][:8]}: the same data is needed to go on"
            )

    def close(self) -> None:
        """Finish the last checkpoint and release the manager's threads."""
        self.finish()
        self._manager.close()


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was saved."""


def _fingerprint(data: Source) -> dict[str, Any]:
    names = "\n".join(data.name(index) for index in range(len(data)))
    return {"images": len(data), "names": hashlib.sha256(names.encode()).hexdigest()}


def _items(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the state into the items `model` and `training`.

    With averaged weights these are the model, and those in training go with the optimizer's state.
    """
    training = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    if training.pop("ema") is None:
        del training["params"], training["batch_stats"]
    return state.model, training


def _joined(model: dict[str, Any], training: dict[str, Any]) -> TrainState:
    """Undo `_items`."""
    if "params" in training:
        return TrainState(**training, ema=model)
    return TrainState(**training, **model, ema=None)


def save_model(
    folder: Path,
    *,
    config: configs.Config,
    table: ClassTable,
    params: Any,
    batch_stats: Any,
    source: dict[str, Any],
    kept: dict[str, np.ndarray] | None = None,
) -> None:
    """Write a model without training state as the checkpoint `folder`; it appears whole.

    `source` are plain values for JSON that tell where the weights come from; `kept` are arrays to
    be handed back by `load_kept`. Raises InputError if `folder` exists or the disk refuses.
    """
    if folder.exists():
        raise InputError(f"{folder} exists: choose another folder, or delete that one")
    items = {
        "model": ocp.args.StandardSave({"params": params, "batch_stats": batch_stats}),
        "config": ocp.args.JsonSave(dataclasses.asdict(config)),
        "classes": ocp.args.JsonSave(table.to_dict()),
        "source": ocp.args.JsonSave(source),
    }
    if kept:
        items["kept"] = ocp.args.StandardSave(kept)
    try:
        _check_space(folder.absolute().parent, (params, batch_stats, kept))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute(), args=ocp.args.Composite(**items))
    except (OSError, ValueError) as error:
        _raise_unless_disk(error)
        _remove_partial(folder)
        raise InputError(
            f"{folder} was not written ({_reason(error)}): free some space or choose another folder"
        ) from error


def _check_space(folder: Path, tree: Any) -> None:
    """Raise OSError if the disk is too full for `tree`: Orbax, once it writes, spreads tracebacks.

    A quota or a limit that the disk does not tell is met while writing all the same.
    """
    while not folder.exists():
        folder = folder.parent
    needed = sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6
    free = shutil.disk_usage(folder).free / 1e6
    if free < needed:
        raise OSError(errno.ENOSPC, f"it takes {needed:,.1f} MB, {free:,.1f} MB are free")


def _raise_unless_disk(error: OSError | ValueError) -> None:
    """Raise what is not the disk's refusal: TensorStore reports a full one as a ValueError."""
    if isinstance(error, ValueError) and "os_error_code" not in str(error):
        raise error


def _remove_partial(folder: Path) -> None:
    """Delete what was written of a checkpoint: its space may be all there is.

    Orbax's other writers do not stop with the one that failed: wait until they have been quiet.
    """
    quiet = 0
    for _ in range(60):
        partial = list(folder.parent.glob(f"{folder.name}.*tmp*"))
        for part in partial:
            shutil.rmtree(part, ignore_errors=True)
        quiet = 0 if partial else quiet + 1
        if quiet == 8:
            return
        time.sleep(0.1)


def _reason(error: Exception) -> str:
    """Return the last clause of TensorStore's long message, such as "File too large"."""
    found = re.search(r"([^:]+) \[os_error_code", str(error))
    strerror = getattr(error, "strerror", None)
    return found[1].strip() if found else strerror or str(error).splitlines()[0]


def load_config(checkpoint: Path) -> configs.Config:
    """Read the config saved in a checkpoint folder; InputError if it is not one."""
    return configs.load(checkpoint / "config" / "metadata")


def load_table(checkpoint: Path) -> ClassTable:
    """Read the class table saved in a checkpoint folder; InputError if it is not one."""
    file = checkpoint / "classes" / "metadata"
    return parse_class_table(*read_json(file), default_name="", most=MOST_CLASSES)


def load_source(checkpoint: Path) -> dict[str, Any]:
    """Read where converted weights come from; empty for a checkpoint of training.

    Raises InputError if that is damaged, as `load_kept` does.
    """
    file = checkpoint / "source" / "metadata"
    return read_json(file)[0] if file.is_file() else {}


def load_kept(checkpoint: Path) -> dict[str, np.ndarray]:
    """Read the arrays that `save_model` was given to keep; empty if there were none."""
    folder = (checkpoint / "kept").absolute()
    if not folder.is_dir():
        return {}
    try:
        names = ocp.StandardCheckpointHandler().metadata(folder).tree
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        with ocp.PyTreeCheckpointer() as checkpointer:
            return dict(checkpointer.restore(folder, restore_args=as_numpy))
    except Exception as error:  # Orbax's own, of whatever kind, for damaged files
        raise InputError(f"{folder} is damaged: convert the weights again") from error


def check_table(checkpoint: Path, table: ClassTable) -> None:
    """Raise InputError unless a checkpoint was trained on the classes of `table`, in its order."""
    theirs = load_table(checkpoint)
    if theirs.class_names != table.class_names:
        pairs = enumerate(zip(theirs.class_names, table.class_names, strict=False))
        first = next((f"class {i} is {a} there, {b} here" for i, (a, b) in pairs if a != b), "")
        raise InputError(
            f"{checkpoint} was trained on the {theirs.num_classes} classes of {theirs.name}, but "
            f"the data set {table.name} has {table.num_classes}: {first or 'some are missing'}"
        )


def load_model(checkpoint: Path, config: configs.Config) -> Parts:
    """Read the model of a checkpoint: its graph, parameters and batch statistics.

    `config` says which model it is; `load_config` gives the one that it was trained with.
    """
    num_classes = load_table(checkpoint).num_classes
    graph, *trees = abstract(config.model, num_classes)
    target = _abstract(dict(zip(("params", "batch_stats"), trees, strict=True)))
    folder = (checkpoint / "model").absolute()
    refusal = InputError(
        f"{checkpoint} does not hold {model_name(config.model)} with {num_classes} classes, "
        "or is damaged; without --config the config saved with it is used"
    )
    try:
        # Compared first: Orbax, once it reads, spreads tracebacks of what does not fit.
        fits = _shapes(ocp.StandardCheckpointHandler().metadata(folder).tree) == _shapes(target)
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder, target) if fits else None
        expected = _saved_sums(checkpoint)
    except Exception as error:  # Orbax's own, of whatever kind, for damaged files
        raise refusal from error
    if restored is None or (expected and differing_sums(restored, expected)):
        raise refusal
    return graph, restored["params"], restored["batch_stats"]


def _saved_sums(checkpoint: Path) -> dict[str, int]:
    """Return the checksums of a checkpoint's model; one of converted weights has none."""
    file = checkpoint / "sums" / "metadata"
    return json.loads(file.read_text())["model"] if file.parent.is_dir() else {}


def _shapes(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return {path: shape}; a stored path holds the indices of lists as text."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(str(entry.key) for entry in path): tuple(leaf.shape) for path, leaf in leaves}


def find(path: Path) -> Path:
    """Return the checkpoint meant by `path`: one itself, or the best one of a run's folder."""
    if (path / "model").is_dir():
        return path
    if path.is_file():
        raise InputError(
            f"{path} is a file, not a checkpoint's folder; weights of PyTorch are converted first: "
            f"python -m segret_jax.convert {path} {path.with_suffix('')}"
        )
    saved = saved_in(path)
    if not saved:
        raise InputError(f"no checkpoint in {path.absolute()}: train first, or give another folder")
    return max(saved, key=lambda p: (_saved_mean_iou(p), int(p.name)))


def saved_in(workdir: Path) -> list[Path]:
    """Return the checkpoints of a run's folder."""
    return [path for path in (workdir / FOLDER).glob("*") if path.name.isdigit()]


def _saved_mean_iou(checkpoint: Path) -> float:
    file = checkpoint / METRICS
    return _mean_iou(json.loads(file.read_text())) if file.is_file() else -1.0


def _mean_iou(metrics: Any) -> float:
    score = (metrics or {}).get("mIoU", -1.0)
    return -1.0 if math.isnan(score) else score


def _abstract(tree: Any) -> Any:
    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
