"""Worker processes that ignore signals of the terminal and end with their parent."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

# A terminal sends SIGINT to all processes of a run, most schedulers send SIGTERM to all.
TERMINATION_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def blocked_signals(*numbers: int) -> Iterator[None]:
    """Block signals in the processes and threads that are started inside.

    Without it, a signal would end a worker that is still importing, with a traceback.
    """
    _start_resource_tracker()  # first: when Python starts it, it unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Start the process that frees the shared memory of a killed run, without its warnings."""
    silence = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(silence)  # the tracker is started with these
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(silence)


def exit_with_parent(*ignored: int) -> None:
    """Ignore the signals `ignored` in this worker, and end it when its parent ends."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
