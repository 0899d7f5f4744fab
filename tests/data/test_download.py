"""Downloads from a server on this machine that breaks off, ignores ranges or sends other bytes."""

import hashlib
import http.server
import io
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from segret_jax.data.datasets import get_dataset
from segret_jax.data.shards.download import ARCHIVES, download, fetch, unpack
from segret_jax.errors import InputError

ADE = get_dataset("ade20k")


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, stored in files.items():
            file.writestr(name, stored)
    return content.getvalue()


PHOTO = np.random.default_rng(0).bytes(300_000)
CONTENT = zipped(
    {"ADEChallengeData2016/images/a.jpg": PHOTO, "ADEChallengeData2016/note.txt": b"read me"}
)


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
    Fresh.url = f"http://127.0.0.1:{httpd.server_port}/ADEChallengeData2016.zip"
    yield Fresh
    httpd.shutdown()
    httpd.server_close()


def archive(server: Any, content: bytes = CONTENT) -> tuple[str, str]:
    return server.url, hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda self, response=None: None)


def test_an_interrupted_transfer_continues(server: Any, tmp_path: Path) -> None:
    server.breaks = 90_000
    path = fetch(*archive(server), tmp_path)
    assert path.read_bytes() == CONTENT
    starts = [int(re.sub(r"\D", "", wanted)) for wanted in server.asked]
    assert starts[:2] == [0, 65536]  # the chunk in which it broke off is lost
    assert len(starts) < 8
    assert [p.name for p in tmp_path.iterdir()] == ["ADEChallengeData2016.zip"]
    fetch(*archive(server), tmp_path)
    assert len(server.asked) == len(starts)  # it is there


def test_a_second_run_continues_where_the_first_stopped(server: Any, tmp_path: Path) -> None:
    (tmp_path / "ADEChallengeData2016.zip.part").write_bytes(CONTENT[:1234])
    assert fetch(*archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1234-"]


def test_a_part_that_is_complete_or_too_long(server: Any, tmp_path: Path) -> None:
    part = tmp_path / "ADEChallengeData2016.zip.part"
    part.write_bytes(CONTENT)
    assert fetch(*archive(server), tmp_path).read_bytes() == CONTENT
    (tmp_path / "ADEChallengeData2016.zip").unlink()
    part.write_bytes(CONTENT + b"more")
    with pytest.raises(InputError, match=r"zip has not the SHA-256 .*; delete it and run again"):
        fetch(*archive(server), tmp_path)


def test_a_server_that_ignores_ranges_sends_all_again(server: Any, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "ADEChallengeData2016.zip.part").write_bytes(b"x" * 1234)
    assert fetch(*archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1234-"]


def test_wrong_bytes_are_not_unpacked(server: Any, tmp_path: Path) -> None:
    server.content = CONTENT[::-1]
    for _ in range(2):
        with pytest.raises(InputError, match=rf"has not the SHA-256 .* of {server.url}; delete"):
            fetch(*archive(server), tmp_path)
    assert len(server.asked) == 1


def test_it_gives_up_after_six_attempts_without_a_byte(server: Any, tmp_path: Path) -> None:
    part = tmp_path / "ADEChallengeData2016.zip.part"
    part.write_bytes(CONTENT[:200_000])
    server.status = 503
    with pytest.raises(InputError, match=rf"503 .*; run the same command again .* from {part}"):
        fetch(*archive(server), tmp_path)
    assert len(server.asked) == 6
    assert part.stat().st_size == 200_000


def test_a_file_that_is_not_there_is_not_asked_for_twice(server: Any, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match="404 Client Error: Not Found"):
        fetch(*archive(server), tmp_path)
    assert len(server.asked) == 1


def test_no_connection_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip"
        with pytest.raises(InputError, match="Connection refused") as caught:
            fetch(url, "", tmp_path)
    assert "\n" not in str(caught.value)


def test_download_unpacks_once(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHIVES, "ade20k", archive(server))
    for _ in range(2):
        download(ADE, tmp_path)
        assert (tmp_path / "ADEChallengeData2016/images/a.jpg").read_bytes() == PHOTO
    assert len(server.asked) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ADEChallengeData2016",
        "ADEChallengeData2016.zip",
    ]


def test_an_archive_unpacks_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zip").write_bytes(CONTENT)

    def stop(self: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
        (path / "ADEChallengeData2016").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", stop)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "a.zip", tmp_path / "ADEChallengeData2016")
    assert not (tmp_path / "ADEChallengeData2016").exists()
    unpack(tmp_path / "a.zip", tmp_path / "ADEChallengeData2016")
    assert (tmp_path / "ADEChallengeData2016/note.txt").read_bytes() == b"read me"
    assert not (tmp_path / "ADEChallengeData2016.partial").exists()


@pytest.mark.parametrize(
    "content",
    [
        zipped({"ADEChallengeData2016/../../evil": b""}),
        zipped({"/evil": b""}),
        zipped({"other/evil": b""}),
        zipped({"ADEChallengeData2016\\..\\evil": b""}),
    ],
)
def test_members_outside_the_folder_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match="would write outside ADEChallengeData2016"):
        unpack(tmp_path / "a.zip", tmp_path / "ADEChallengeData2016")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_ade20k_is_the_official_archive() -> None:
    url, _ = ARCHIVES["ade20k"]
    assert f"{ADE.archive}.zip" in url
    assert "data prepare ade20k --download" in ADE.download_hint
