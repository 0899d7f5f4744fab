"""Prepared datasets on remote stores: copied once and whole, or read there."""

import http.server
import logging
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from segret_jax.data.datasets import get_dataset
from segret_jax.data.shards import remote
from segret_jax.data.shards.manifest import MANIFEST
from segret_jax.data.shards.prepare import prepare
from segret_jax.data.shards.prepared import open_files
from segret_jax.data.sources import FolderSource
from segret_jax.errors import InputError
from tests.data.pairs import write_dataset

CAMVID = get_dataset("camvid")
SHARD = "camvid-training.array_record-00001-of-00002"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the user's cache be a fresh folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    """Return the empty store behind memory://."""
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "raw", CAMVID, CAMVID.layouts[0], {"training": 4, "validation": 2})
    return tmp_path / "raw"


URL = "memory://bucket/data"
THERE = f"{URL}/camvid/1.0.0"


@pytest.fixture
def prepared(raw: Path, store: MemoryFileSystem) -> Path:
    """Prepare at `URL`; return the folder it was made from."""
    assert prepare(CAMVID, raw, URL, shards=2) == THERE
    assert not list(remote.cache_folder(".").parent.rglob("*.array_record-*"))  # it was moved
    return raw


def copied_bytes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said to be copied down, in MB, since the last call."""
    found = re.findall(rf"copying {THERE} to .* first \((.*) MB\)", caplog.text)
    caplog.clear()
    return found


def test_a_remote_store_is_copied_once_with_a_message(
    prepared: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = open_files(CAMVID, URL, "training"), FolderSource(CAMVID, prepared, "training")
    assert [source.record(i).image for i in range(4)] == [folder.record(i).image for i in range(4)]
    assert [source.record(i).label for i in range(4)] == [folder.record(i).label for i in range(4)]
    assert len(copied_bytes(caplog)) == 1
    monkeypatch.setattr(MemoryFileSystem, "open", None)  # nothing may be read again
    for root in (URL, THERE):
        assert len(open_files(CAMVID, root, "validation")) == 2
    assert copied_bytes(caplog) == []


def test_an_interrupted_copy_continues(
    prepared: Path, store: MemoryFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = remote.fetch(THERE, (".",))
    (folder / MANIFEST).unlink()
    (folder / SHARD).write_bytes(b"half")
    size = store.size(f"{THERE}/{SHARD}")
    caplog.clear()
    open_files(CAMVID, URL, "training")[3]
    assert copied_bytes(caplog) == [f"{size / 1e6:.1f}"]


def test_a_file_that_does_not_fit_the_manifest_is_refused(
    prepared: Path, store: MemoryFileSystem
) -> None:
    store.pipe_file(f"{THERE}/{SHARD}", b"x" * store.size(f"{THERE}/{SHARD}"))
    for _ in range(2):  # nor does the refused copy pass for complete later
        with pytest.raises(InputError, match=rf"{THERE}/{SHARD} does not fit its manifest\.json"):
            open_files(CAMVID, URL, "training")


def test_an_interrupted_upload_continues_and_ends_with_the_manifest(
    raw: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    put = MemoryFileSystem.put_file

    def put_three(self: Any, local: str, target: str, **options: Any) -> None:
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(target)
        put(self, local, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", put_three)
        with pytest.raises(KeyboardInterrupt):
            prepare(CAMVID, raw, URL, shards=2)
    with pytest.raises(InputError, match="there is no prepared dataset at memory://bucket/data"):
        open_files(CAMVID, URL, "training")
    first = sent.copy()
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda *args, **o: (sent.append(args[2]), put(*args, **o))
    )
    prepare(CAMVID, raw, URL, shards=2)
    assert sent[:3] == first
    assert not set(first) & set(sent[3:])
    assert len(open_files(CAMVID, URL, "training")) == 4
    assert sorted(Path(f).name for f in store.ls(THERE, detail=False))[-1] == MANIFEST


def test_a_complete_dataset_is_not_overwritten(
    prepared: Path, capsys: pytest.CaptureFixture
) -> None:
    assert prepare(CAMVID, prepared, URL, shards=2) == THERE
    assert f"{THERE} is complete already: delete it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("http", "aiohttp")]
)
def test_a_backend_that_is_not_installed_is_named(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{kind}://bucket needs .*: pip install {package}$"):
        open_files(CAMVID, f"{kind}://bucket", "training")


def test_an_unknown_kind_of_url_is_named() -> None:
    with pytest.raises(InputError, match="foo://bucket cannot be opened: Protocol not known: foo"):
        open_files(CAMVID, "foo://bucket", "training")


# gs://


class ObjectServer(http.server.BaseHTTPRequestHandler):
    """Google's object store as ArrayRecord speaks to it: GET of byte ranges."""

    folder: Path
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = unquote(urlparse(self.path).path).rsplit("/", 1)[1]
        self.asked.append(name)
        content = (self.folder / name).read_bytes()
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert match
        first = int(match[1]) if match[1] else max(0, len(content) - int(match[2]))
        last = int(match[2]) if match[1] and match[2] else len(content) - 1
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def bucket(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Serve the returned folder as every bucket of gs://."""
    ObjectServer.folder = tmp_path / "bucket"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ObjectServer)
    server.handle_error = lambda *args: None  # the reader hangs up when it has enough
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
    # What gcsfs would be, for the small files.
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (store, url))
    yield ObjectServer.folder
    server.shutdown()
    server.server_close()


def test_gs_is_read_in_place(bucket: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = "gs://bucket/data"
    prepare(CAMVID, raw, url, shards=2)
    prepare(CAMVID, raw, str(bucket.parent / "again"), shards=2)
    shutil.copytree(bucket.parent / "again/camvid/1.0.0", bucket)
    with caplog.at_level(logging.WARNING):
        source = open_files(CAMVID, url, "training")
    assert "first (0.0 MB)" in caplog.text
    folder = FolderSource(CAMVID, raw, "training")
    for i in range(4):
        assert source.record(i).image == folder.record(i).image
    assert set(ObjectServer.asked) == {SHARD, SHARD.replace("00001-of", "00000-of")}
    assert not list((remote.cache_folder(f"{url}/camvid/1.0.0")).glob("*.array_record-*"))
