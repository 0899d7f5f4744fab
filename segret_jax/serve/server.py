"""The server: its address, and the loop that runs until Ctrl-C."""

import errno
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from segret_jax.errors import InputError
from segret_jax.run import interrupts

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
BACKLOG = 512  # connections that wait while programs are compiled


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; who connects waits until `run` serves.

    Raises:
        InputError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            reason = "another program listens there"
        raise InputError(
            f"cannot serve at {host}:{port} ({reason}): give another --port or --host"
        ) from error
    return listening


def address(listening: socket.socket) -> str:
    """Return the address to open in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine can reach a host's address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(app: Starlette, listening: socket.socket) -> None:
    """Serve until Ctrl-C, which ends the process with status 130."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, lifespan="off",
        http="h11", ws="none", backlog=BACKLOG,
    )  # fmt: skip
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ctrl-C ends it without waiting for clients, whatever its threads are at."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Not by an exception: uvicorn would take it for one of the request at work.
        before = signal.signal(signal.SIGINT, lambda *_: interrupts.quit_at_once(_print_end))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _print_end() -> None:
    print("\nended", file=sys.stderr, flush=True)
