"""The folder of a run: whose it is, and what has become of the run."""

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from segret_jax import config as configs
from segret_jax.checkpoint.model import saved_in
from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.parallel import processes
from segret_jax.settings import flatten, rules

STATUS = "status"
HOST_GONE = 120  # seconds after which a network disk should know
LOCK = ".lock"  # held by the process at work in the folder; the system frees it with the process


@contextmanager
def claim_workdir(workdir: Path, config: Config) -> Iterator[Callable[[str], None]]:
    """Make `workdir` this run's folder; refuse one of another config, or where a run is at work.

    Keeps a file `status` there for schedulers: running, finished, stopped or failed, in one word.
    Yields what to call with `finished` or `stopped`. A run that was killed leaves `running`.
    """
    if "://" in str(workdir):
        raise InputError(
            f"--workdir {workdir}: give a folder; a bucket is mounted first (gcsfuse, s3fs)"
        )
    with disk_errors_as_input_errors(f"to --workdir {workdir}"):
        processes.check_shared(workdir)
    with ExitStack() as stack:

        def claim() -> None:
            with disk_errors_as_input_errors(f"to --workdir {workdir}"):
                stack.enter_context(_lock(workdir))
            _check_and_save(workdir, config)

        processes.run_on_primary(claim)
        mark = partial(_mark, workdir)
        mark("running")
        try:
            yield mark
        except BaseException:
            mark("failed")
            raise


def _lock(workdir: Path) -> IO[str]:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / LOCK).open("a+", encoding="utf-8")
    host, patience = platform.node(), HOST_GONE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read()
            # A network disk frees the lock of a host that is gone only after a while.
            if patience > 0 and not owner.endswith(f" on {host}"):
                time.sleep(5)
                patience -= 5
                continue
            lock.close()
            raise InputError(
                f"{workdir} is in use by a run that is still at work ({owner}): stop it, or choose "
                f"another --workdir. If it is surely gone, delete {workdir / LOCK}"
            ) from error
        except OSError:  # some network disks have no locks
            return lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {host}")
        lock.flush()
        return lock


def _check_and_save(workdir: Path, config: Config) -> None:
    saved = workdir / "config.json"
    if saved.exists():
        theirs, ours = flatten(configs.load(saved)), flatten(config)
        rule = rules(config)
        different = [k for k in ours if theirs.get(k) != ours[k] and not rule[k].may_change]
        is_longer = ours["train.steps"] > theirs["train.steps"]
        if different and not (different == ["train.steps"] and is_longer):
            raise _refusal(workdir, theirs, ours, different)
    with disk_errors_as_input_errors(f"to --workdir {workdir}"):
        (workdir / "pictures").mkdir(parents=True, exist_ok=True)
        configs.save(config, saved)


def _refusal(
    workdir: Path, theirs: dict[str, Any], ours: dict[str, Any], different: list[str]
) -> InputError:
    """Return the error for a folder whose run has other settings, and what to do instead."""
    made = newest_step(workdir)
    if different == ["train.steps"]:
        return InputError(
            f"{workdir} holds a run of {theirs['train.steps']} steps, {made} of them made, but "
            f"train.steps is {ours['train.steps']}: a run can be made longer, not shorter. Give "
            f"--config.train.steps={theirs['train.steps']} or more, or another --workdir"
        )
    listed = ", ".join(f"{k} ({theirs.get(k)} there, {ours[k]} here)" for k in different)
    remedy = f"; --config.init_from={workdir} starts there from this run's weights" if made else ""
    return InputError(
        f"{workdir} holds a run of another config: {listed}. Choose another --workdir{remedy}"
    )


def newest_step(workdir: Path) -> int:
    """Return the newest step that a run has saved, or 0."""
    return max((int(path.name) for path in saved_in(workdir)), default=0)


def _mark(workdir: Path, word: str) -> None:
    if processes.is_primary():
        with suppress(OSError):  # a full disk is told where it matters
            atomic_write(workdir / STATUS, word + "\n")
