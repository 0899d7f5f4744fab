"""Preparing: what is written, and that nothing unfinished or damaged passes for complete."""

import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.cli.data import main
from segret_jax.data.datasets import get_dataset
from segret_jax.data.shards import prepare as prepare_module
from segret_jax.data.shards.manifest import MANIFEST
from segret_jax.data.shards.prepare import prepare
from segret_jax.data.shards.prepared import open_files
from segret_jax.data.shards.verify import verify
from segret_jax.data.sources import FolderSource, Record
from segret_jax.errors import InputError
from tests.data.pairs import flip, write_dataset

ADE = get_dataset("ade20k")
FOLDER = Path("ade20k/1.0.0")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a folder in the layout of ADE20K with 4 + 3 pairs."""
    write_dataset(tmp_path / "raw", ADE, ADE.layouts[0], {"training": 4, "validation": 3})
    return tmp_path / "raw"


@pytest.fixture
def data(raw: Path, tmp_path: Path) -> Path:
    """Return the same, prepared."""
    prepare(ADE, raw, str(tmp_path / "data"), shards=2)
    return tmp_path / "data"


def assert_complete(data: Path) -> None:
    assert verify(data / FOLDER) == []
    assert [path.name for path in data.iterdir()] == ["ade20k"]
    assert [path.name for path in (data / "ade20k").iterdir()] == ["1.0.0"]
    assert len(open_files(ADE, data, "training")) == 4


def test_manifest_holds_counts_sizes_and_checksums_but_no_machine(
    data: Path, tmp_path: Path
) -> None:
    content = json.loads((data / FOLDER / MANIFEST).read_text())
    files = {path.name: path.read_bytes() for path in (data / FOLDER).iterdir()}
    described = {
        name: {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}
        for name, stored in files.items()
        if name != MANIFEST
    }
    assert content["files"] == described
    assert content["totals"] == {
        "records": {"training": 4, "validation": 3},
        "bytes": sum(file["bytes"] for file in described.values()),
    }
    assert content["splits"]["validation"]["shards"] == {
        "ade20k-validation.array_record-00000-of-00002": 2,
        "ade20k-validation.array_record-00001-of-00002": 1,
    }
    assert content["source"].startswith("images/training/**/*.jpg with annotations/training/")
    assert not any(str(tmp_path).encode() in stored for stored in files.values())


def test_a_complete_folder_is_not_written_again(
    raw: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (data / FOLDER / MANIFEST).stat().st_mtime_ns
    assert prepare(ADE, raw, str(data), shards=2, fetch=True) == str(data / FOLDER)
    assert f"{data / FOLDER} is complete already: delete it" in capsys.readouterr().out
    assert (data / FOLDER / MANIFEST).stat().st_mtime_ns == before


# Interruption


def interrupt(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Let Ctrl-C come while the pair `at` is read."""
    read = FolderSource.record

    def record(self: FolderSource, index: int) -> Record:
        if index == at:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(FolderSource, "record", record)


def test_ctrl_c_leaves_nothing_and_the_next_run_completes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    with monkeypatch.context() as patch:
        interrupt(patch, at=2)
        with pytest.raises(KeyboardInterrupt):
            prepare(ADE, raw, str(data), shards=2)
    assert not list((data / "ade20k").iterdir())
    prepare(ADE, raw, str(data), shards=2)
    assert_complete(data)


KILLED = """
import os, signal, sys
from pathlib import Path
from segret_jax.data.datasets import get_dataset
from segret_jax.data.shards.prepare import prepare
from segret_jax.data.sources import FolderSource
read = FolderSource.record
def record(self, index):
    if self.split == "validation":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, index)
FolderSource.record = record
prepare(get_dataset("ade20k"), Path(sys.argv[1]), sys.argv[2], shards=2)
"""


def test_remains_of_a_killed_run_are_rejected_and_removed(raw: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-c", KILLED, str(raw), str(data)]
    assert subprocess.run(command, capture_output=True).returncode == -9
    (left,) = (data / "ade20k").iterdir()
    assert list(left.glob("*.array_record-*"))  # the first split was written
    with pytest.raises(InputError, match=r"is incomplete .*its preparation was interrupted"):
        open_files(ADE, data, "training")
    prepare(ADE, raw, str(data), shards=2)
    assert_complete(data)


def test_data_of_a_run_stopped_before_its_manifest_is_rejected(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    data = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module.manifests, "stored_file", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(ADE, raw, str(data), shards=2)
    assert (data / FOLDER / "index.json").is_file()
    with pytest.raises(InputError, match=f"{data / FOLDER} is incomplete"):
        open_files(ADE, data, "training")
    with pytest.raises(InputError, match=f"{data / FOLDER} is incomplete"):
        verify(data / FOLDER)
    prepare(ADE, raw, str(data), shards=2)
    assert_complete(data)


# What cannot be prepared


def test_a_faulty_pair_ends_the_run_and_is_named(raw: Path, tmp_path: Path) -> None:
    label = raw / "annotations/training/city_0/t002.png"
    Image.fromarray(np.full((32, 48), 200, np.uint8)).save(label)
    with pytest.raises(InputError, match=f"{label}: label id 200 at pixel"):
        prepare(ADE, raw, str(tmp_path / "data"), shards=1)
    assert not list((tmp_path / "data/ade20k").iterdir())
    label.unlink()
    with pytest.raises(InputError, match=r"1 image without label \(city_0/t002\)"):
        prepare(ADE, raw, str(tmp_path / "data"), shards=1)


def test_a_split_that_is_not_there_is_left_out_and_said(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(raw / "images/training")
    prepare(ADE, raw, str(tmp_path / "data"), shards=1)
    out = capsys.readouterr().out
    assert "validation: 3 pairs, images/validation/**/*.jpg" in out
    assert f"left out: there is no folder {raw}/images/training" in out
    shutil.rmtree(raw / "images/validation")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(InputError, match=f"there is no folder {raw}/images/training"):
        prepare(ADE, raw, str(tmp_path / "data"), shards=1)


def test_a_folder_of_another_program_is_not_removed(raw: Path, tmp_path: Path) -> None:
    info = tmp_path / "data" / FOLDER / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text('{"moduleName": "tensorflow_datasets.ade20k"}')
    with pytest.raises(InputError, match=r"is not from segret data prepare; choose another"):
        prepare(ADE, raw, str(tmp_path / "data"), shards=1)
    assert info.is_file()


@pytest.mark.parametrize("shards", [0, 4])
def test_shards_are_at_least_one_and_never_empty(raw: Path, shards: int) -> None:
    with pytest.raises(InputError, match=rf"--shards is {shards}; it takes 1 to 3"):
        prepare(ADE, raw, "unused", shards=shards)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow past 4 kB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_one_line_and_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"writing .*/ade20k/1\.0\.0 failed: .*File too large"
    ) as caught:
        prepare(ADE, raw, str(tmp_path / "data"), shards=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data/ade20k").iterdir())


def test_records_are_not_sorted_in_memory(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Past 1 GB TFDS's sorting imports TensorFlow, which small data would not show.
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.Shuffler", None)
    prepare(ADE, raw, str(tmp_path / "data"), shards=2)
    assert_complete(tmp_path / "data")


# Verifying


def test_verify_names_every_fault(data: Path) -> None:
    assert verify(data / FOLDER) == []
    shard = data / FOLDER / "ade20k-training.array_record-00000-of-00002"
    flip(shard, open_files(ADE, data, "training").record(1).image)
    gone = data / FOLDER / "ade20k-validation.array_record-00001-of-00002"
    gone.unlink()
    longer = data / FOLDER / "features.json"
    longer.write_text(longer.read_text() + "\n")
    faults = "\n".join(verify(data / FOLDER))
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    assert f"{shard}: is {shard.stat().st_size} bytes of SHA-256 {digest}, not " in faults
    assert f"{gone}: no such file" in faults
    assert re.search(rf"{longer}: is \d+ bytes of .*, not \d+ bytes of .* written", faults)


def test_verify_names_damaged_records(data: Path) -> None:
    shard = data / FOLDER / "ade20k-training.array_record-00000-of-00002"
    flip(shard, open_files(ADE, data, "training").record(1).image)
    faults = verify(data / FOLDER)
    assert len(faults) == 2
    assert faults[1].startswith(f"{shard}, record 1 (city_0/t002) is damaged: ")


# Commands


def test_commands_prepare_and_verify_ones_own_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    classes = [{"id": i, "name": f"class {i}", "color": "#000000"} for i in range(8)]
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"name": "2 Pets!", "classes": classes}))
    spec = get_dataset(str(own))
    write_dataset(tmp_path / "raw", spec, spec.layouts[0], {"validation": 2})
    data = tmp_path / "data"
    main(["prepare", str(own), "--source", str(tmp_path / "raw"), "--data_dir", str(data)])
    folder = data / "set_2_pets_/1.0.0"
    assert (
        f"2 Pets! is in {folder}; train with --config.data.root={data}" in capsys.readouterr().out
    )
    assert len(open_files(spec, data, "validation")) == 2
    for where in (data, folder.parent, folder):
        main(["verify", str(where)])
        assert capsys.readouterr().out == f"{folder}: as it was written\n"
    for name in ("index.json", "dataset_info.json"):
        (folder / name).rename(data / name)
        for where in (data, folder.parent):
            with pytest.raises(SystemExit) as caught:
                main(["verify", str(where)])
            assert caught.value.code == 1
            assert capsys.readouterr().out == f"{folder}/{name}: no such file\n"
        (data / name).rename(folder / name)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a command: segret data check|prepare|verify"),
        (["prepair"], "unknown command 'data prepair': did you mean 'prepare'?"),
        (["prepare", "ade20k"], "the following arguments are required: --source, --data_dir"),
        (["verify", "/nowhere"], "there is no prepared dataset in /nowhere"),
        (["verify", "gs://bucket"], "gs://bucket is remote; its files are checked when"),
        (
            ["prepare", "cityscapes", "--download", "--source", "DIR", "--data_dir", "x"],
            "cityscapes has no archive that is free to download: get leftImg8bit_trainvaltest.zip",
        ),
    ],
)
def test_wrong_commands_are_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        main(argv)


def test_a_run_without_prepared_data_does_not_import_tfds() -> None:
    code = "import sys, segret_jax.data.pipeline; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
