"""The frame of every command: errors in one line, Ctrl-C, safe output, huge pages."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from segret_jax.errors import InputError
from segret_jax.run import environment, interrupts, streams

HUGE_PAGES = "SEGRET_HUGE_PAGES"
TUNABLES = "glibc.malloc.hugetlb=1"


def run(main: Callable[[list[str]], None], *, computes: bool = False) -> None:
    """Call `main` with the arguments; print the user's errors alone and exit with status 2.

    Ctrl-C ends with one line and status 130. A program that `computes` runs on huge pages.
    """
    if computes and not {"-h", "--help"} & set(sys.argv):
        _use_huge_pages()
    streams.make_safe()
    with interrupts.interrupt_once() as interrupted:
        try:
            environment.drop_unsafe_settings()
            logging.basicConfig(format="%(message)s", level=logging.WARNING)
            main(sys.argv[1:])
        except (Exception, KeyboardInterrupt) as error:
            if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
                interrupts.quit_at_once(_print_interrupted)  # Python's own end may take long
            if isinstance(error, InputError | OSError):  # such as a full disk
                print(f"error: {error}", file=sys.stderr)
                _exit(2)
            traceback.print_exc()
            _exit(70)  # a bug, as in sysexits.h; 1 is a verdict of check, verify and compare


def _print_interrupted() -> None:
    print("interrupted", file=sys.stderr)
    sys.stdout.flush()


def _exit(status: int) -> NoReturn:
    """Exit with `status`; with several processes abort, since the others do not exit together."""
    processes: Any = sys.modules.get("segret_jax.parallel.processes")
    if processes:
        processes.abort(status)
    sys.exit(status)


def _use_huge_pages() -> None:
    """Start the program again with glibc's huge pages on, unless the user turned it off.

    XLA on CPU allocates its buffers with malloc and frees them at every step; with 4 KiB pages the
    faults take a third to a half of the time. glibc reads the setting only at start-up.
    """
    is_off = os.environ.get(HUGE_PAGES) == "0" or "GLIBC_TUNABLES" in os.environ
    if sys.platform == "linux" and not is_off:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, sys.orig_argv)


def print_huge_pages() -> None:
    """Print a line if the program was started again to use huge pages."""
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES:
        print(f"memory in huge pages, for speed ({HUGE_PAGES}=0 turns it off)", file=sys.stderr)
