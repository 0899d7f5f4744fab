"""Files that are cut off, changed, or do not add up end in one message."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from tests.convert.forge import FOUR, state, tensor, write_legacy, write_zip
from tests.convert.test_tensors import BASE, DATA, fault


def test_a_flipped_bit_in_a_storage_fails_its_checksum(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a", state(w=tensor()))
    content = bytearray(path.read_bytes())
    content[content.index(FOUR) + 5] ^= 1
    path.write_bytes(content)
    assert fault(path).startswith("is damaged or cut off (Bad CRC-32")


def test_zip_tricks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_zip(path, state(w=tensor()), **{"constants.pkl": b""})
    assert "is a TorchScript program" in fault(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    assert "has compressed data, which PyTorch never writes" in fault(path)
    write_zip(path, state(w=tensor()), padding=bytes(10_000))
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += [archive.getinfo("a/padding")] * 9  # many entries, the same bytes
        archive.writestr("a/version", "3")
    assert "its parts are larger than the file or overlap" in fault(path)


def test_a_zip_part_before_the_file_start_is_damage(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a", state(w=tensor()))
    content = bytearray(path.read_bytes())
    content[-6:-2] = b"\xff\xff\xff\x7f"  # the start of the directory, which all starts refer to
    path.write_bytes(content)
    assert fault(path).startswith("is damaged or cut off (")


def test_inconsistent_legacy_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_legacy(path, state(w=tensor()), numel=3)
    assert "a storage has another length than its tensors say" in fault(path)
    write_legacy(path, state(w=tensor()), protocol=1)
    assert "unknown protocol of PyTorch" in fault(path)
    write_legacy(path, state(w=tensor()), keys=[("0",)])
    assert "a storage with a key of wrong type" in fault(path)
    path.write_bytes(write_legacy(path, state(w=tensor())).read_bytes()[:-1])
    assert "the end is missing" in fault(path)


def test_a_file_without_checksums_is_checked_by_its_lengths(tmp_path: Path) -> None:
    found = read_tensors(DATA / "unchecked.pth")
    assert found.format == "torch zip without checksums"
    np.testing.assert_array_equal(found.tensors["w"], BASE)
    np.testing.assert_array_equal(found.tensors["v"], BASE.astype(ml_dtypes.bfloat16))
    assert_only_faults_while_cut(DATA / "unchecked.pth", tmp_path / "a")


def assert_only_faults_while_cut(file: Path, copy: Path) -> None:
    content = file.read_bytes()
    ends = range(32), range(32, len(content), len(content) // 48), range(-48, 0)
    for cut in (cut for part in ends for cut in part):
        copy.write_bytes(content[:cut])
        fault(copy)


@pytest.mark.parametrize(
    "file", ["zip.pth", "checkpoint_zip.pth", "checkpoint_legacy.pth", "tensors.safetensors"]
)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, file: str) -> None:
    assert_only_faults_while_cut(DATA / file, tmp_path / "a")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_cut_anywhere_is_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", w=BASE, v=BASE[0])
    assert_only_faults_while_cut(tmp_path / "a.npz", tmp_path / "b")


@pytest.mark.parametrize(
    "file", ["checkpoint_zip.pth", "checkpoint_legacy.pth", "unchecked.pth", "tensors.safetensors"]
)
def test_changed_bytes_end_in_one_message_or_in_plain_data(tmp_path: Path, file: str) -> None:
    content, path = (DATA / file).read_bytes(), tmp_path / "a"
    expected, random = read_tensors(DATA / file).tensors, np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(content)
        for place in random.integers(len(content), size=random.integers(1, 4)):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        try:
            found = read_tensors(path)
        except InputError:
            fault(path)
            continue
        json.dumps(found.metadata, allow_nan=False)
        # A zip has checksums: what is read at all is right, if perhaps under other metadata.
        if file == "checkpoint_zip.pth":
            for key in expected:
                np.testing.assert_array_equal(found.tensors[key], expected[key])
