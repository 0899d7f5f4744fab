"""Saved models on the Hugging Face Hub, played by a local server."""

import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from segret_jax.checkpoint import hub
from segret_jax.checkpoint.folders import find
from segret_jax.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"library_name": "segret_jax"}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": b"weights" * 1000,
    "training_state.pt": b"not to be downloaded",
}


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hub's protocol that a download needs."""

    repositories: dict[str, dict[str, bytes]]
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            name, kind, revision = found.groups()
            files = self.repositories.get(name)
            if name == "me/gated":
                return self.answer(403, {}, {"X-Error-Code": "GatedRepo"})
            if files is None:
                return self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", "v1", COMMIT):
                return self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            tree = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]}
            return self.answer(200, tree if kind == "tree" else info)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)", path):
            content = self.repositories[found[1]][found[3]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": etag})
        return self.answer(404, {})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serve(repositories: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []
    handler = type("Handler", (Hub,), {"repositories": repositories, "requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Play the Hub; yield the paths that it is asked for."""
    models = {"me/model": FILES, "me/pytorch": {"config.json": b"{}", "model.safetensors": b""}}
    with serve(models | {"me/empty": {}}) as (url, requests):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield requests


def message(source: str) -> str:
    with pytest.raises(InputError) as caught:
        find(source)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_saved_model_is_downloaded_once(requests):
    folder = find("hf://me/model")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }
    requests.clear()
    assert find("hf://me/model") == folder == find("hf://me/model@v1")
    assert not any("resolve" in path for path in requests)


def test_without_a_network_the_cache_is_used(requests, monkeypatch):
    folder = find("hf://me/model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert find("hf://me/model") == folder
    text = message("hf://me/other")
    assert text.startswith(
        "hf://me/other is not in the cache, and the Hub cannot be reached: check"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("hf://me/none", "hf://me/none: there is no such repository; check the name; if it is pri"),
        ("hf://me/gated", "hf://me/gated is open only to some: ask for access on its page, then"),
        (
            "hf://me/model@v2",
            "hf://me/model@v2: the repository has no revision 'v2'; give a bra",
        ),
        ("hf://me/pytorch", "hf://me/pytorch holds no model of segret_jax (config.json and model"),
        ("hf://me/empty", "hf://me/empty holds no model of segret_jax"),
    ],
)
def test_what_cannot_be_read_is_one_line(requests, source, text):
    assert message(source).startswith(text)


@pytest.mark.parametrize(
    "source", ["hf://", "hf://me", "hf://a/b/c", "hf://me/model@../../x", "hf://me/m\x1b"]
)
def test_a_wrong_address_is_one_line(source):
    assert message(source).endswith(": write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")


def test_a_server_that_breaks_off_is_one_line(requests, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("peer went away\nat byte 5")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    assert message("hf://me/model").endswith("could not be downloaded (peer went away): try again")


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install huggingface_hub"):
        hub.download("hf://me/model", ())
