"""The checkpoints of a run: saved asynchronously, the newest few and the best by mIoU kept.

Their format, and how other programs read them, is in `checkpoint.orbax_model`.
"""

import hashlib
import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from segret_jax import config as configs
from segret_jax.checkpoint import disk_errors
from segret_jax.checkpoint.folders import FOLDER, METRICS, mean_iou_of, saved_mean_iou
from segret_jax.checkpoint.model import check_table
from segret_jax.checkpoint.orbax_model import load_format
from segret_jax.checkpoint.reading import UnreadableError, read_stored_json
from segret_jax.checkpoint.restore import items_to_save, restore
from segret_jax.checkpoint.state import TrainState
from segret_jax.data.class_table import ClassTable
from segret_jax.data.sources import Source
from segret_jax.errors import InputError
from segret_jax.files import atomic_write
from segret_jax.parallel import processes


class Checkpoints:
    """The checkpoints of one working folder.

    They are saved asynchronously: `save` returns once the state is copied, and `finish` when it
    is on the disk. A checkpoint becomes visible only when it is whole.
    """

    def __init__(self, workdir: Path, config: configs.Config, table: ClassTable, data: Source):
        """Open the checkpoints of `workdir`; a run continues only with the same training `data`."""
        self.config, self.table = config, table
        self.data = _fingerprint(data)
        self.folder = (workdir / FOLDER).absolute()
        self._manager = self._open()
        self._unfinished_step: int | None = None  # the step whose checkpoint is not yet on the disk
        self._is_saved = True  # the last one

    def _open(self) -> ocp.CheckpointManager:
        preserve = [
            LatestN(self.config.train.keep_checkpoints),
            BestN(get_metric_fn=mean_iou_of, n=1, keep_checkpoints_without_metrics=False),
        ]
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=mean_iou_of,
                preservation_policy=AnyPreservationPolicy(preserve),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, or begun to be, or None."""
        return self._manager.latest_step()

    def has_score(self, step: int) -> bool:
        """Return whether a saved step has a score, as the primary process sees it."""
        found = saved_mean_iou(self.folder / str(step)) >= 0
        return processes.gather(bytes([found]))[0] == b"\x01"

    def save(self, state: TrainState) -> None:
        """Start to save `state` unless it is saved; `finish` reports disk errors."""
        step = int(state.step)
        self.finish()
        if step == self.latest_step:
            return
        self._unfinished_step, self._is_saved = step, True
        items = items_to_save(state, self.config, self.table)
        items["data"] = ocp.args.JsonSave(self.data)
        try:
            if not processes.is_multiprocess():  # which would have to refuse together
                disk_errors.check_space(self.folder, state)
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={}, force=True)
        except (OSError, ValueError) as error:
            self._on_disk_error(error)

    def finish(self) -> bool:
        """Wait for the last checkpoint; log an error and return False if it was not saved."""
        if self._unfinished_step is not None:
            try:
                self._manager.wait_until_finished()
                self._unfinished_step = None
            except (OSError, ValueError) as error:
                self._on_disk_error(error)
        return self._is_saved

    def _on_disk_error(self, error: OSError | ValueError) -> None:
        """Remove the incomplete last checkpoint, and log the error."""
        reason = disk_errors.disk_error_reason(error)
        step, self._unfinished_step, self._is_saved = self._unfinished_step, None, False
        with suppress(Exception):  # it would raise the same error again at whatever is next
            self._manager.close()
        disk_errors.remove_partial_checkpoint(self.folder / str(step))
        self._manager = self._open()
        logging.error(
            "checkpoint of step %d was not saved in %s (%s). Earlier checkpoints are whole; "
            "free some space or choose another --workdir",
            step, self.folder, reason,
        )  # fmt: skip

    def add_score(self, step: int, mean_iou: float) -> None:
        """Store the score of a saved step; the best checkpoint is kept by it.

        The step is saved before its evaluation, so that an interrupted evaluation costs no step.
        """
        if not self.finish() or math.isnan(mean_iou):
            return
        if processes.is_primary():
            try:
                atomic_write(self.folder / str(step) / METRICS, json.dumps({"mIoU": mean_iou}))
            except OSError as error:  # the state itself is safe
                logging.error("the score of step %d was not saved (%s)", step, error.strerror)
        processes.wait_for_all("score written")
        self._manager.reload()

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """Restore the newest state that can be read.

        A damaged checkpoint is logged and moved aside, and the one before it is used. If none can
        be read, the cause may be elsewhere: nothing is moved.

        Args:
            like: The structure, shapes and sharding of the state.

        Returns:
            The state, or None if none was saved.

        Raises:
            InputError: No checkpoint can be read, or it is of a newer version, of another
                structure, of other classes or of other training images.
        """
        faults: dict[int, UnreadableError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = restore(self.folder / str(step), like)
                self._check_data(step)
            except UnreadableError as error:
                faults[step] = error
                continue
            for other, fault in faults.items():
                self._set_aside(other, fault)
            return restored
        if faults:
            listed = "; ".join(f"{step}: {fault}" for step, fault in faults.items())
            raise InputError(
                f"no checkpoint in {self.folder} can be read ({listed}); nothing was moved. "
                "Install the versions of JAX, Flax and Orbax that wrote them, or start in "
                "another --workdir"
            ) from next(iter(faults.values()))
        return None

    def _set_aside(self, step: int, fault: UnreadableError) -> None:
        if processes.is_primary():
            folder = self.folder / str(step)
            target, number = self.folder.parent / f"damaged_checkpoint_{step}", 1
            while target.exists():
                number += 1
                target = target.with_name(f"damaged_checkpoint_{step}_{number}")
            logging.warning(
                "%s is damaged (%s): moved to %s; the checkpoint before it is used",
                folder, fault, target,
            )  # fmt: skip
            folder.rename(target)
        processes.wait_for_all("damaged checkpoint set aside")
        self._manager.reload()

    def _check_data(self, step: int) -> None:
        """Raise InputError if a checkpoint was made with other classes or training images."""
        checkpoint = self.folder / str(step)
        check_table(checkpoint, self.table)
        if load_format(checkpoint) == 0:  # which does not tell
            return
        theirs = read_stored_json(checkpoint / "data")
        if theirs != self.data:
            raise InputError(
                f"{checkpoint} was trained on {theirs.get('images')} images, names "
                f"{str(theirs.get('names'))[:8]}, but data.root now holds {self.data['images']}, "
                f"names {self.data['names'][:8]}: the same data is needed to resume. To train on "
                f"other data from these weights, give --config.init_from={checkpoint} and another "
                "--workdir"
            )

    def close(self) -> None:
        """Finish the last checkpoint and release the manager's threads."""
        self.finish()
        self._manager.close()


def _fingerprint(data: Source) -> dict[str, Any]:
    names = "\n".join(data.name(index) for index in range(len(data)))
    return {"images": len(data), "names": hashlib.sha256(names.encode()).hexdigest()}
