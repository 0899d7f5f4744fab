"""Paths of pictures for `segret predict --ray`: folders, lists, buckets."""

import io
import os

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segret_jax.errors import InputError
from segret_jax.prediction.paths import find_paths, read_path


def png() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def bucket():
    """Return a file system in memory, which stands for a bucket."""
    store = fsspec.filesystem("memory")
    store.pipe({"/b/1.png": png(), "/b/sub/2.jpg": b"", "/b/.3.png": b"", "/b/notes.md": b""})
    yield "memory://b"
    store.rm("/b", recursive=True)


def test_folders_give_absolute_paths_each_once(tmp_path, monkeypatch):
    for name in ("a.png", "b.jpg", "c.md", "d.mp4"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    paths, notes = find_paths([".", "a.png", "*.jpg"])
    assert paths == [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    assert ["1 .md, 1 .mp4 (with --ray, videos are not read)" in note for note in notes] == [True]
    with pytest.raises(InputError, match=r"d\.mp4: with --ray, videos are not read"):
        find_paths(["d.mp4"])


def test_lists_name_paths_that_need_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("x/1.jpg\r\n\ns3://b/2 3.jpg\n/4.png", encoding="utf-8-sig")
    pq.write_table(pa.table({"path": ["5.jpg", None]}), tmp_path / "list.parquet")
    expected = [str(tmp_path / "x/1.jpg"), "s3://b/2 3.jpg", "/4.png", str(tmp_path / "5.jpg")]
    assert find_paths(["list.txt", "list.parquet"])[0] == expected


def test_buckets_are_listed_and_read(bucket):
    assert find_paths([bucket])[0] == ["memory:///b/1.png"]
    both = ["memory:///b/1.png", "memory:///b/sub/2.jpg"]
    assert find_paths([bucket], recursive=True)[0] == both
    assert find_paths([f"{bucket}/**/*"])[0] == both
    assert read_path(both[0]).shape == (2, 4, 3)
    for path, reason in ((both[1], "identify"), (f"{bucket}/no.png", "cannot be read")):
        with pytest.raises(InputError, match=reason):
            read_path(path)


def test_lists_that_cannot_be_read(tmp_path):
    pq.write_table(pa.table({"file": ["1.jpg"]}), tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "latin.txt").write_bytes(b"\xe9.jpg")
    (tmp_path / "empty.txt").write_bytes(b"")
    for name, reason in {
        "other.parquet": "no column path, but file",
        "cut.parquet": "damaged",
        "latin.txt": "damaged",
        "empty.txt": "no images",
        "no.txt": "No such file",
    }.items():
        with pytest.raises(InputError, match=reason):
            find_paths([str(tmp_path / name)])


def test_names_that_parquet_cannot_hold_are_noted(tmp_path):
    for name in (b"\xe9.png", b"a.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    paths, notes = find_paths([str(tmp_path)])
    assert paths == [str(tmp_path / "a.png")]
    assert "not UTF-8" in notes[-1]
    assert notes[-1].isprintable()


def test_a_pipe_is_an_error_and_not_a_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="is not a file"):
        read_path(str(tmp_path / "pipe.jpg"))
