"""Disk errors while Orbax writes: foreseen, reported in one line, and cleaned up after."""

import errno
import re
import shutil
import time
from pathlib import Path
from typing import Any

import jax


def check_space(folder: Path, tree: Any) -> None:
    """Raise OSError if the disk is too full for `tree`: Orbax, once it writes, prints tracebacks.

    Quotas that the disk does not report appear only while writing.
    """
    while not folder.exists():
        folder = folder.parent
    needed = sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6
    free = shutil.disk_usage(folder).free / 1e6
    if free < needed:
        raise OSError(errno.ENOSPC, f"it takes {needed:,.1f} MB, {free:,.1f} MB are free")


def disk_error_reason(error: OSError | ValueError) -> str:
    """Return why the disk refused, such as "File too large"; raise an error that is not the disk's.

    TensorStore reports a full disk as a ValueError with a long message.
    """
    if found := re.search(r"([^:]+) \[os_error_code", str(error)):
        return found[1].strip()
    if isinstance(error, ValueError):
        raise error
    return error.strerror or str(error).splitlines()[0]


def remove_partial_checkpoint(folder: Path) -> None:
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
