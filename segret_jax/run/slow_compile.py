"""Keep XLA's alarm about slow compilations out of standard error, and nothing else.

XLA logs it as an error after two minutes (xla/service/slow_operation_alarm.cc) and again at the
end; a log level that hides it would hide real errors. So while a program compiles, native output
goes through this file, run as a program: a process of its own still passes on the last words of a
process that crashed, which a thread would not.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

ALARM = re.compile(
    rb"[^\n]*slow_operation_alarm\.cc:\d+\] (The operation took [^\n]*\n)?"
    rb"\n\*{32}\n[^\n]*Very slow compile\?[^\n]*\n\*{32}\n"
)
TIMEOUT = 5  # seconds; a child of this process may keep the pipe open


@contextmanager
def filter_slow_compile_alarm() -> Iterator[None]:
    """Filter what native code writes to standard error, while the block runs.

    Nothing is done where Python itself writes to descriptor 2, as it does unless
    `streams.make_safe` was called: the progress bar asks its stream for the terminal's width.
    """
    with ExitStack() as stack:
        # Without descriptors or processes to spare the alarm is seen, which harms nothing.
        with suppress(OSError):
            if not _python_uses_descriptor_2():
                _filter(stack)
        yield


def _python_uses_descriptor_2() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # a stand-in, or none at all
        return False


def _filter(stack: ExitStack) -> None:
    saved = os.dup(2)
    stack.callback(os.close, saved)
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE, stdout=saved, start_new_session=True,
    )  # fmt: skip
    assert child.stdin is not None
    stack.callback(_wait, child)
    os.dup2(child.stdin.fileno(), 2)
    stack.callback(os.dup2, saved, 2)  # closes the pipe: the child passes on the rest and ends
    child.stdin.close()


def _wait(child: subprocess.Popen) -> None:
    with suppress(subprocess.TimeoutExpired):
        child.wait(TIMEOUT)


def main() -> None:
    """Copy standard input to standard output without the alarm, each message as it comes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with what it reads from
        signal.signal(number, signal.SIG_IGN)
    while chunk := os.read(0, 1 << 16):  # XLA writes a message at once
        rest = memoryview(ALARM.sub(b"", chunk))
        while rest:
            rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    main()
