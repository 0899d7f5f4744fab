"""The application under starlette's test client, and a real server in a process of its own."""

import io
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install starlette uvicorn")
from starlette.testclient import TestClient

from segret_jax.serve.app import create_app
from segret_jax.serve.limits import Limits
from tests.serve import stand_in

START = 120  # seconds


def picture(height: int = 40, width: int = 60, kind: str = "PNG") -> bytes:
    """Return the file of a gray photograph."""
    content = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 128, np.uint8)).save(content, kind)
    return content.getvalue()


@pytest.fixture
def client() -> Iterator[Callable[..., TestClient]]:
    """Return a function that makes a client of an application with some limits."""
    made = []

    def make(*, served: Any = None, hosts: Any = None, **limits: Any) -> TestClient:
        app = create_app(served or stand_in.served(), Limits(**limits), hosts=hosts)
        made.append(app)
        return TestClient(app, raise_server_exceptions=False)

    yield make
    for app in made:
        app.state.queue.close()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Running:
    """A server in its own process."""

    def __init__(self, port: int, *options: str, seconds: float = 0.0):
        self.port = port
        command = [sys.executable, "-m", "tests.serve.stand_in", str(port), str(seconds), *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline().startswith("http://127.0.0.1"), self.end()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self) -> str:
        """Kill it; return what it wrote to standard error."""
        self.process.kill()
        return self.process.communicate()[1]


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    """Return a function that starts a server."""
    started: list[Running] = []

    def start(*options: str, seconds: float = 0.0) -> Running:
        started.append(Running(free_port(), *options, seconds=seconds))
        return started[-1]

    yield start
    for one in started:
        one.end()
