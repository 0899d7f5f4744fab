"""Downloads from a server on this machine that breaks off, ignores ranges or sends other bytes."""

import hashlib
import http.server
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import requests

from segret_jax.data.datasets import get_dataset
from segret_jax.data.shards.download import ARCHIVES, Archive, download, fetch, unpack
from segret_jax.errors import InputError

ADE = get_dataset("ade20k")


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, stored in files.items():
            file.writestr(name, stored)
    return content.getvalue()


PHOTO = np.random.default_rng(0).bytes(300_000)
CONTENT = zipped({"Data2016/images/a.jpg": PHOTO, "Data2016/note.txt": b"read me"})


class Server(http.server.BaseHTTPRequestHandler):
    """Sends `content`; `breaks` bytes at most in each answer, if that is not 0."""

    content: ClassVar[bytes]
    breaks: ClassVar[int]
    ranges: ClassVar[bool]
    status: ClassVar[int]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append(wanted)
        start = int(re.sub(r"\D", "", wanted) or 0) if self.ranges else 0
        if self.status != 200:
            self.send_error(self.status)
            return
        if start >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:][: self.breaks or None])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[type[Server]]:
    class Fresh(Server):
        content, breaks, ranges, status = CONTENT, 0, True, 200
        asked: ClassVar[list[str]] = []

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    Fresh.url = f"http://127.0.0.1:{httpd.server_port}/Data2016.zip"
    yield Fresh
    httpd.shutdown()
    httpd.server_close()


def archive(server: Any, content: bytes = CONTENT) -> Archive:
    return Archive(url=server.url, sha256=hashlib.sha256(content).hexdigest(), folder="Data2016")


def test_a_transfer_that_breaks_off_goes_on(server: Any, tmp_path: Path) -> None:
    server.breaks = 90_000
    path = fetch(archive(server), tmp_path, pause=0.0)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=90000-", "bytes=180000-", "bytes=270000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["Data2016.zip"]
    fetch(archive(server), tmp_path, pause=0.0)
    assert len(server.asked) == 4  # it is there


def test_a_second_run_goes_on_where_the_first_stopped(server: Any, tmp_path: Path) -> None:
    (tmp_path / "Data2016.zip.part").write_bytes(CONTENT[:1234])
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1234-"]


def test_a_part_that_is_complete_or_too_long(server: Any, tmp_path: Path) -> None:
    part = tmp_path / "Data2016.zip.part"
    part.write_bytes(CONTENT)
    assert fetch(archive(server), tmp_path, pause=0.0).read_bytes() == CONTENT
    (tmp_path / "Data2016.zip").unlink()
    part.write_bytes(CONTENT + b"more")
    assert fetch(archive(server), tmp_path, pause=0.0).read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_all_again(server: Any, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "Data2016.zip.part").write_bytes(b"x" * 1234)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1234-"]


def test_wrong_bytes_are_deleted_and_said(server: Any, tmp_path: Path) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(InputError, match=r"is not the known file of SHA-256 .*it was deleted"):
        fetch(archive(server), tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_gives_up_after_five_attempts_without_a_byte(server: Any, tmp_path: Path) -> None:
    (tmp_path / "Data2016.zip.part").write_bytes(CONTENT[:200_000])
    server.status = 503
    message = r"the server answers 503 .*; 0\.2 MB of it are in .*\.part: run the same command"
    with pytest.raises(InputError, match=message):
        fetch(archive(server), tmp_path, pause=0.0)
    assert len(server.asked) == 5
    assert (tmp_path / "Data2016.zip.part").stat().st_size == 200_000


def test_a_file_that_is_not_there_is_not_asked_for_twice(server: Any, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match="the server answers 404 Not Found"):
        fetch(archive(server), tmp_path, pause=0.0)
    assert len(server.asked) == 1


def test_no_connection_is_one_line(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*args: object, **options: object) -> None:
        raise requests.exceptions.ConnectTimeout("no route")

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(InputError, match=r"the connection breaks off \(ConnectTimeout\)") as caught:
        fetch(archive(server), tmp_path, pause=0.0)
    assert "\n" not in str(caught.value)


def test_download_unpacks_once(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHIVES, "ade20k", archive(server))
    for _ in range(2):
        download(ADE, tmp_path)
        assert (tmp_path / "Data2016/images/a.jpg").read_bytes() == PHOTO
    assert len(server.asked) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Data2016", "Data2016.zip"]


def test_an_archive_unpacks_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zip").write_bytes(CONTENT)

    def stop(self: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
        (path / "Data2016").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", stop)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "a.zip", tmp_path / "Data2016")
    assert not (tmp_path / "Data2016").exists()
    unpack(tmp_path / "a.zip", tmp_path / "Data2016")
    assert (tmp_path / "Data2016/note.txt").read_bytes() == b"read me"
    assert not (tmp_path / "Data2016.partial").exists()


def linked() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        info = zipfile.ZipInfo("Data2016/images")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc")
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zipped({"Data2016/../../evil": b""}),
        zipped({"/evil": b""}),
        zipped({"other/evil": b""}),
        zipped({"Data2016\\..\\evil": b""}),
        linked(),
    ],
)
def test_members_outside_the_folder_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match="would write outside Data2016"):
        unpack(tmp_path / "a.zip", tmp_path / "Data2016")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    for damaged in (CONTENT[:1000], CONTENT.replace(PHOTO[:50], bytes(50))):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{path} is damaged .*; delete it and run again"):
            unpack(path, tmp_path / "Data2016")
        assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_ade20k_is_the_official_archive() -> None:
    assert ARCHIVES["ade20k"].folder == ADE.archive
    assert ARCHIVES["ade20k"].file_name in ADE.download_hint
