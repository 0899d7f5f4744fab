"""A disk that refuses while Orbax writes: seen before, told in one line, cleaned up after."""

import errno
import re
import shutil
import time
from pathlib import Path
from typing import Any

import jax


def check_space(folder: Path, tree: Any) -> None:
    """Raise OSError if the disk is too full for `tree`: Orbax, once it writes, spreads tracebacks.

    A quota or a limit that the disk does not tell is met while writing all the same.
    """
    while not folder.exists():
        folder = folder.parent
    needed = sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6
    free = shutil.disk_usage(folder).free / 1e6
    if free < needed:
        raise OSError(errno.ENOSPC, f"it takes {needed:,.1f} MB, {free:,.1f} MB are free")


def reraise_unless_disk_error(error: OSError | ValueError) -> None:
    """Raise what is not the disk's refusal: TensorStore reports a full one as a ValueError."""
    if isinstance(error, ValueError) and "os_error_code" not in str(error):
        raise error


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


def reason(error: Exception) -> str:
    """Return the last clause of TensorStore's long message, such as "File too large"."""
    found = re.search(r"([^:]+) \[os_error_code", str(error))
    strerror = getattr(error, "strerror", None)
    return found[1].strip() if found else strerror or str(error).splitlines()[0]
