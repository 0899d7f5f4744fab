"""Standard output and error that end no program: any encoding, and a closed pipe."""

import os
import sys
from contextlib import suppress
from typing import Any


def make_safe() -> None:
    """Make prints never fail: results are on the disk, and a long run outweighs its messages.

    Characters that the encoding lacks are escaped. After the reader of a pipe has gone
    (`segret train | head`), further output is dropped.
    """
    separate = _apart_from_native_code(sys.stderr)
    sys.stdout, sys.stderr = _SafeStream(sys.stdout), _SafeStream(separate)


def _apart_from_native_code(stream: Any) -> Any:
    """Return the stream on a descriptor of its own: native code's output can then be filtered."""
    try:
        descriptor = os.dup(stream.fileno())  # never closed: the last words come at the very end
        return open(descriptor, "w", buffering=1, encoding=stream.encoding, closefd=False)
    except (OSError, ValueError, AttributeError):  # a stand-in, or none at all
        return stream


class _SafeStream:
    """A text stream whose `write` and `flush` do not raise."""

    def __init__(self, stream: Any):
        self._stream = stream
        with suppress(AttributeError, ValueError):  # a stand-in, or none at all
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write `text`, or drop it where it cannot be written."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError, AttributeError):
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush, as `write` does."""
        try:
            self._stream.flush()
        except (OSError, ValueError, AttributeError):
            self._drop()

    def _drop(self) -> None:
        """Send further output to the null device, what Python flushes at its end included."""
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
