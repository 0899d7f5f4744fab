"""Answer Ctrl-C at once, also while native code delays Python's signal handlers."""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import NoReturn

STATUS = 130  # what shells report for a program that Ctrl-C ended
NOTICE_DELAY = 0.5  # seconds until a line says that the interrupt is delayed
REPEAT_WINDOW = 0.5  # seconds; make and timeout pass Ctrl-C on to a program that has it already
GRACE_SECONDS = 2.0  # for the last line: a disk or a terminal may hang


class InterruptCounter:
    """Count presses of Ctrl-C."""

    def __init__(self) -> None:
        self._count, self._last = 0, -REPEAT_WINDOW

    def add(self) -> int:
        """Count a SIGINT unless it repeats the last press; return the number of presses."""
        now = monotonic()
        if now - self._last >= REPEAT_WINDOW:
            self._count, self._last = self._count + 1, now
        return self._count


@contextmanager
def signal_listener(answer: Callable[[int], None]) -> Iterator[None]:
    """Call `answer`, in a separate thread, with the number of each signal that has a handler."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def listen() -> None:
        while received := receiver.recv(64):
            for number in received:
                with suppress(Exception):  # a terminal that is gone must not end the thread
                    answer(number)

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        thread.join(timeout=5)  # `answer` may hang: the program must end all the same
        receiver.close()


@contextmanager
def interrupt_once() -> Iterator[threading.Event]:
    """Raise one KeyboardInterrupt in the main thread; quit at once on the second press.

    If native code, such as a compilation, delays the first one, a line says so. A second
    KeyboardInterrupt while the first unwinds the stack would print tracebacks. After the block
    Ctrl-C ends the process silently, because Python's own exit would print a traceback, too.

    Yields:
        An event that is set once the interrupt is raised: libraries may turn it into another
        exception.
    """
    presses, is_raised = InterruptCounter(), threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if not is_raised.is_set():
            is_raised.set()
            raise KeyboardInterrupt

    def answer(number: int) -> None:
        if number != signal.SIGINT:
            return
        if presses.add() > 1:
            quit_at_once(lambda: print_below_bar("interrupted"))
        elif not is_raised.wait(NOTICE_DELAY):
            print_below_bar("interrupting after this operation; press Ctrl-C again to quit at once")

    signal.signal(signal.SIGINT, interrupt)
    try:
        with signal_listener(answer):
            yield is_raised
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def print_below_bar(message: str) -> None:
    """Print a line on standard error, but not through `sys.stderr`: another thread may hold it."""
    os.write(2, f"\n{message}\n".encode())


def quit_at_once(log: Callable[[], None], status: int = STATUS) -> NoReturn:
    """Call `log`, then end this process and its workers, whatever its threads are at."""
    hanging = threading.Timer(GRACE_SECONDS, os._exit, (status,))
    hanging.start()
    with suppress(Exception):
        log()
    for worker in multiprocessing.active_children():
        worker.kill()
    hanging.cancel()
    os._exit(status)
