"""The command `segret serve` in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

COMMAND = (sys.executable, "-m", "segret_jax", "serve", "--port", "0")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `segret serve` during the block; yield the process and the page's address."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        line = next((line for line in lines if line.startswith("open http")), None)
        assert line, process.communicate()[1]
        yield process, line.split()[1]
    finally:
        process.kill()
        process.communicate()
