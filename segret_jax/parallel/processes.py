"""One run in several processes: one for each host of a TPU slice, or as a cluster starts them.

Every process runs the same program on its own devices; `jax.distributed` makes them one mesh.
The primary one (index 0) prints and writes for all. All hosts must share the folder of a run.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from segret_jax.errors import InputError

HELP = "auto (Cloud TPU, SLURM, Kubernetes, Open MPI), or INDEX/COUNT@HOST:PORT of process 0"
START_TIMEOUT = 300  # seconds to wait for the other processes


def start(spec: str | None) -> None:
    """Connect to the other processes of the run, before anything else of JAX.

    Args:
        spec: The value of --processes: None for a single process, INDEX/COUNT@HOST:PORT, or
            `auto` to read the environment, as `jax.distributed.initialize` does.

    Raises:
        InputError: `spec` is malformed, the environment names no cluster, or the others are not
            found within `START_TIMEOUT`.
    """
    if spec is None:
        return
    explicit = re.fullmatch(r"(\d+)/(\d+)@(.+:\d+)", spec)
    if spec != "auto" and not (explicit and int(explicit[1]) < int(explicit[2])):
        raise InputError(f"--processes is {spec!r}; give {HELP}, such as 0/2@node1:9876")
    own: Any = {}
    if explicit:
        index, count, address = explicit.groups()
        own = {"coordinator_address": address, "cluster_detection_method": "deactivate"}
        own |= {"num_processes": int(count), "process_id": int(index)}
    try:
        jax.distributed.initialize(initialization_timeout=START_TIMEOUT, **own)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--processes {spec}: the processes did not find each other ({reason}); "
                         f"give {HELP}") from error  # fmt: skip


def is_primary() -> bool:
    """Return whether this process prints and writes for all."""
    return jax.process_index() == 0


def is_multiprocess() -> bool:
    """Return whether there are other processes."""
    return jax.process_count() > 1


def wait_for_all(where: str) -> None:
    """Wait until every process has reached `where`."""
    if is_multiprocess():
        multihost_utils.sync_global_devices(where)


def gather(content: bytes) -> list[bytes]:
    """Return the `content` of each process, in the order of the processes."""
    if not is_multiprocess():
        return [content]
    # As bytes: JAX would make 32-bit numbers of 64-bit ones.
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes.tolist(), strict=True)]


def run_on_primary(action: Callable[[], None], refusal: type[Exception] = InputError) -> None:
    """Call `action` in the primary process; if it raises a `refusal`, all processes raise it."""
    fault = ""
    if is_primary():
        try:
            action()
        except refusal as error:
            if not is_multiprocess():
                raise
            fault = str(error)
    if fault := gather(fault.encode())[0].decode():
        raise refusal(fault)


def check_shared(folder: Path) -> None:
    """Raise InputError unless all processes see a file that the primary one wrote in `folder`."""
    if not is_multiprocess():
        return
    file = folder / ".shared"
    if is_primary():
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    wait_for_all("check_shared: written")
    seen = gather(bytes([file.exists()]))  # returns when all have looked
    if is_primary():
        file.unlink(missing_ok=True)
    blind = [i for i, answer in enumerate(seen) if answer != b"\x01"]
    if blind:
        raise InputError(
            f"{folder} is not shared: processes {blind} do not see what the first one wrote there; "
            "give a --workdir on a disk that all hosts mount"
        )


def abort(status: int) -> None:
    """Exit at once if there are other processes, which would wait for this one forever.

    They exit too, within the timeout of JAX's heartbeats.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
