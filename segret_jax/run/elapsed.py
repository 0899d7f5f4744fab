"""A clock that moves while native code keeps the main thread busy."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def show_elapsed(show: Callable[[str], None], *, interval: float = 1.0) -> Iterator[None]:
    """Call `show` with the time so far, such as "1:05", at once and every `interval` seconds."""
    begun, over = time.monotonic(), threading.Event()

    def run() -> None:
        while not over.wait(interval):
            with suppress(Exception):  # a terminal that is gone must not end the clock's thread
                show(_minutes(time.monotonic() - begun))

    thread = threading.Thread(target=run, name="moving clock", daemon=True)
    show(_minutes(0.0))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)  # `show` may hang: the run goes on all the same


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
