"""Folders of Hugging Face: one file, shards with an index, and what does not add up."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from segret_jax import files
from segret_jax.cli.convert import main
from segret_jax.convert import folder as folders
from segret_jax.convert.exporting import write_tensors
from segret_jax.convert.folder import read_source
from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from tests.convert.models import random_tensors, write_pth

W = {name: np.full(3, i, np.float32) for i, name in enumerate("abcd")}
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"
PLACES = {"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}


def write_shard(file: Path, names: str) -> None:
    file.unlink(missing_ok=True)
    write_tensors(file, {name: W[name] for name in names}, {"format": "pt"})


def write_index(folder: Path, places: object = PLACES) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_shard(tmp_path / FIRST, "ab")
    write_shard(tmp_path / SECOND, "cd")
    return write_index(tmp_path)


def fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_source(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 900
    return message


@pytest.mark.parametrize("source", ["", INDEX])
def test_shards_are_put_together(sharded: Path, source: str) -> None:
    found = read_source(sharded / source)
    firsts = {name: array[0] for name, array in found.tensors.items()}
    assert firsts == {"a": 0, "b": 1, "c": 2, "d": 3}
    sums = [hashlib.sha256((sharded / name).read_bytes()).hexdigest() for name in (FIRST, SECOND)]
    lines = f"{sums[0]}  {FIRST}\n{sums[1]}  {SECOND}\n"
    assert found.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert (found.format, found.metadata) == ("safetensors in 2 files", {"format": "pt"})


def test_shards_of_pytorch_are_read_too(tmp_path: Path) -> None:
    places = {f"module.{name}": f"pytorch_model-{i}.bin" for i, name in enumerate("ab")}
    for i, name in enumerate("ab"):
        write_pth(tmp_path / f"pytorch_model-{i}.bin", {f"module.{name}": W[name]})
    content = json.dumps({"weight_map": places})
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    found = read_source(tmp_path)
    assert (list(found.tensors), found.prefix) == (["a", "b"], "module.")
    assert found.format == "torch zip in 2 files"


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_converted_with_the_names_of_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folder, tensors = tmp_path / "segret", random_tensors(3)
    folder.mkdir()
    if file == "model.safetensors":
        write_tensors(folder / file, {f"model.{n}": t for n, t in tensors.items()}, {})
    else:
        write_pth(folder / file, tensors)
    config = {"model_type": "segret", "id2label": {"0": "sky", "1": "land", "2": "sea"}}
    (folder / "config.json").write_text("\ufeff" + json.dumps(config), encoding="utf-8")
    main([str(folder), str(tmp_path / "b.npz"), "--report", str(tmp_path / "r.json")])
    printed = capsys.readouterr().out
    assert "segret: " in printed
    assert "classes as the file names them (id2label of config.json)" in printed
    back = read_tensors(tmp_path / "b.npz").tensors
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["file"], report["classes"]) == ("segret", "own")
    assert report["metadata"]["config"]["model_type"] == "segret"


def test_one_file_wins_over_shards_and_safetensors_over_pickles(sharded: Path) -> None:
    write_pth(sharded / "pytorch_model.bin", {"d": W["d"]})
    assert len(read_source(sharded).tensors) == 4
    write_shard(sharded / "model.safetensors", "a")
    assert list(read_source(sharded).tensors) == ["a"]


def test_a_cache_of_hugging_face_is_of_links(tmp_path: Path, sharded: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, name in enumerate((FIRST, SECOND, INDEX)):
        (sharded / name).rename(blobs / str(i))
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    assert len(read_source(snapshot).tensors) == 4


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:b", "a\0b",
     "\x1b[31m", "a" * 300, 3, None, ["a"]],
    ids=lambda name: ascii(name)[:12],
)  # fmt: skip
def test_an_index_names_only_files_beside_it(sharded: Path, name: object) -> None:
    (sharded.parent / "model.safetensors").unlink(missing_ok=True)
    write_index(sharded, PLACES | {"d": name})
    message = fault(sharded)
    assert "is no name of a file beside the index" in message or "which it should hold" in message
    assert message.endswith("download the folder again")


def test_links_out_of_the_folder_in_a_circle_and_to_nothing_are_refused(sharded: Path) -> None:
    folder, secret = sharded / "weights", sharded / "secret.npz"
    folder.mkdir()
    write_shard(secret, "ab")
    for name in (FIRST, SECOND, INDEX):
        (sharded / name).rename(folder / name)
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to(secret)
    assert f"{FIRST} is a link to {secret}, outside of its folder; put" in fault(folder)
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to(FIRST)
    assert f"lacks {FIRST}, which it should hold" in fault(folder)
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to("/dev/null")
    assert "is a link to /dev/null, outside of its folder" in fault(folder)
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST)  # reading it would wait for ever
    assert f"{FIRST} is no plain file" in fault(folder)
    (folder / "model.safetensors").symlink_to(secret)
    assert "outside of its folder" in fault(folder)


def test_missing_and_cut_off_shards_are_named(sharded: Path) -> None:
    content = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(content[:-1])
    assert fault(sharded).startswith(f"{sharded / SECOND}: is damaged or cut off")
    (sharded / SECOND).unlink()
    assert (
        fault(sharded)
        == f"{sharded} lacks {SECOND}, which it should hold; download the folder again"
    )


def test_a_tensor_lies_in_one_shard_and_the_index_names_it(sharded: Path) -> None:
    write_shard(sharded / SECOND, "bcd")
    assert f"maps tensor 'b' to '{FIRST}', but {SECOND} holds it" in fault(sharded)
    write_shard(sharded / SECOND, "c")
    assert f"maps tensor 'd' to '{SECOND}', but {SECOND} lacks it" in fault(sharded)
    write_shard(sharded / SECOND, "cd")
    write_index(sharded, {name: file for name, file in PLACES.items() if name != "d"})
    assert f"maps tensor 'd' nowhere, but {SECOND} holds it" in fault(sharded)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read (Expecting property name"),
        ("[1]", "cannot be read (no {...})"),
        ("{}", "is no index of shards: it has no 'weight_map'"),
        ('{"weight_map": []}', "is no index of shards"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "cannot be read (a key is given twice)"),
        ('{"a":' * 50_000, "cannot be read ("),
        ('{"weight_map": {"a": ' + "1" * 5_000 + "}}", "cannot be read ("),
    ],
    ids=["cut off", "a list", "empty", "no map", "a key twice", "deep", "a long number"],
)
def test_an_invalid_index_is_rejected(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / INDEX).write_text(content)
    assert reason in fault(tmp_path)


def test_sizes_are_bounded(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_SHARDS", 1)
    assert "names 2 files; at most 1 are read" in fault(sharded)
    monkeypatch.setattr(files, "MAX_JSON", 10)
    assert "cannot be read (longer than 10 bytes)" in fault(sharded)


def test_a_folder_without_weights_lists_the_expected_names(tmp_path: Path) -> None:
    assert "has none of model.safetensors, model.safetensors.index.json, pytorch_" in fault(
        tmp_path
    )
    write_shard(tmp_path / "model.safetensors", "a")
    (tmp_path / "config.json").write_text("[")
    assert "config.json cannot be read" in fault(tmp_path)
    with pytest.raises(InputError, match="has no 'x'; its tensors lie at the top"):
        read_source(tmp_path / "model.safetensors", wrapper="x")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="leave --wrapper out"):
        read_source(write_index(tmp_path), wrapper="x")
