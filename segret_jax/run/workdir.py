"""The folder of a run: the run that owns it, and that run's status."""

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from segret_jax import config as configs
from segret_jax.checkpoint.folders import saved_in
from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.files import atomic_write, disk_errors_as_input_errors
from segret_jax.parallel import processes
from segret_jax.settings import flatten, rules

STATUS, CONFIG = "status", "config.json"
LOCK_TIMEOUT = 120  # seconds after which a network disk frees the lock of a host that is gone
LOCK = ".lock"  # held by the process at work in the folder; the system frees it with the process


@contextmanager
def claim_workdir(workdir: Path, config: Config) -> Iterator[Callable[[str], None]]:
    """Make `workdir` this run's folder.

    Keeps a file `status` there for schedulers: running, finished, stopped or failed, in one word.
    A run that was killed leaves `running`.

    Args:
        workdir: The folder; it is created.
        config: The run's config, which is saved there.

    Yields:
        A function to be called with "finished" or "stopped".

    Raises:
        InputError: The folder holds a run of another config, or a run uses it now.
    """
    if "://" in str(workdir):
        raise InputError(
            f"--workdir {workdir}: give a folder; a bucket is mounted first (gcsfuse, s3fs)"
        )
    disk_errors = partial(disk_errors_as_input_errors, f"to --workdir {workdir}")
    with disk_errors():
        processes.check_shared(workdir)

    def mark(word: str) -> None:
        if processes.is_primary():
            with suppress(OSError):  # a full disk is reported where it matters
                atomic_write(workdir / STATUS, word + "\n")

    with ExitStack() as stack:

        def claim() -> None:
            with disk_errors():
                stack.enter_context(_lock(workdir))
                _check_config(workdir, config)
                (workdir / "pictures").mkdir(exist_ok=True)
                configs.save(config, workdir / CONFIG)

        processes.run_on_primary(claim)
        mark("running")
        try:
            yield mark
        except BaseException:
            mark("failed")
            raise


def _lock(workdir: Path) -> IO[str]:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / LOCK).open("a+", encoding="utf-8")
    host, deadline = platform.node(), time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read()
            # A network disk frees the lock of a host that is gone only after a while.
            if time.monotonic() > deadline or owner.endswith(f" on {host}"):
                lock.close()
                raise InputError(
                    f"{workdir} is in use by a run that is still at work ({owner}): stop it, or "
                    f"choose another --workdir. If it is surely gone, delete {workdir / LOCK}"
                ) from error
            time.sleep(5)
        except OSError:  # some network disks have no locks
            return lock
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {host}")
    lock.flush()
    return lock


def _check_config(workdir: Path, config: Config) -> None:
    """Raise InputError if the folder's run has other settings that may not change."""
    if not (workdir / CONFIG).exists():
        return
    theirs, ours = flatten(configs.load(workdir / CONFIG)), flatten(config)
    rule = rules(config)
    different = [k for k in ours if theirs.get(k) != ours[k] and not rule[k].may_change]
    made, before, now = newest_step(workdir), theirs["train.steps"], ours["train.steps"]
    if different == ["train.steps"]:
        if now > before:
            return
        raise InputError(
            f"{workdir} holds a run of {before} steps, {made} of them made, but train.steps is "
            f"{now}: a run can be made longer, not shorter. Give --config.train.steps={before} or "
            "more, or another --workdir"
        )
    if different:
        listed = ", ".join(f"{k} ({theirs.get(k)} there, {ours[k]} here)" for k in different)
        remedy = f"; --config.init_from={workdir} starts there from this run's weights"
        remedy *= made > 0 and not any(rule[key].shared for key in different)
        if "train.minutes" in different:
            remedy += "; --config.train.steps=N, with the minutes as they were, makes a run longer"
        raise InputError(
            f"{workdir} holds a run of another config: {listed}. Choose another --workdir{remedy}"
        )


def newest_step(workdir: Path) -> int:
    """Return the newest step that a run has saved, or 0."""
    return max((int(path.name) for path in saved_in(workdir)), default=0)
