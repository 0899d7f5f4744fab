"""Forged files: pickles put together from opcodes, in both containers of PyTorch."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from tests.convert.test_tensors import DATA, fault

FOUR = np.arange(4, dtype="<f4").tobytes()


def value(content: object) -> bytes:
    return pickle.dumps(content, 2)[2:-1]


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(function: str, *args: bytes) -> bytes:
    return name(function) + b"(" + b"".join(args) + b"tR"


def storage(key: object = "0", numel: object = 4, kind: str = "torch.FloatStorage") -> bytes:
    return b"(" + value("storage") + name(kind) + b"".join(map(value, (key, "cpu", numel))) + b"tQ"


def tensor(
    offset: object = 0,
    shape: object = (4,),
    strides: object = (1,),
    stored: bytes = b"",
    *rest: bytes,
) -> bytes:
    args = [value(arg) for arg in (offset, shape, strides, False)]
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", stored or storage(), *args, hooks, *rest)


def state(**items: bytes) -> bytes:
    return b"}(" + b"".join(value(key) + item for key, item in items.items()) + b"u"


def write_zip(path: Path, content: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + content + b".")
        for entry, data in ({"data/0": FOUR} | entries).items():
            archive.writestr(f"a/{entry}", data)
    return path


def write_legacy(
    path: Path, content: bytes, *, little: bool = True, protocol: int = 1001, numel: int = 4
) -> Path:
    parts: list[Any] = [0x1950A86A20F9469CFC6C, protocol, {"little_endian": little}]
    head = b"".join(pickle.dumps(part, 2) for part in parts) + b"\x80\x02" + content + b"."
    path.write_bytes(head + pickle.dumps(["0"], 2) + struct.pack("<q", numel) + FOUR)
    return path


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_forged_file_is_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    content = state(a=tensor(2, (2, 2), (0, 1)), tag=value("x"), old=value({1: "a"}))
    found = read_tensors(write(tmp_path / "a", content))
    np.testing.assert_array_equal(found.tensors["a"], [[2, 3], [2, 3]])
    assert found.metadata == {"tag": "x", "old": {"1": "a"}}


def test_metadata_of_other_writers_is_read(tmp_path: Path) -> None:
    content = state(
        w=tensor(),
        config=name("yacs.config.CfgNode") + b")\x81(" + value("LR") + value(0.1) + b"u"
        + value({"__immutable__": True}) + b"b",
        python2=call("collections.OrderedDict", value([["a", 1]])) + b"U\x03key" + b"U\x03abcs",
        accuracy=call(
            "numpy.core.multiarray.scalar",
            call("numpy.dtype", value("f8"), value(0), value(1))
            + value((3, "<", None, None, None, -1, -1, 0)) + b"b",
            call("_codecs.encode", value(struct.pack("<d", 0.5).decode("latin1")), value("latin1")),
        ),
    )  # fmt: skip
    found = read_tensors(write_zip(tmp_path / "a", content))
    expected = {"config": {"LR": 0.1}, "python2": {"a": 1, "key": "abc"}, "accuracy": 0.5}
    assert found.metadata == expected


# Attacks. The first group would run under pickle.load.

TOUCH = "open({!r}, 'w').close()"
LIVE: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda p: call("os.system", value(f"touch {p}")),
    f"{os.name}.system": lambda p: (  # by STACK_GLOBAL
        value(os.name) + value("system") + b"\x93(" + value(f"touch {p}") + b"tR"
    ),
    "builtins.eval": lambda p: call("builtins.eval", value(TOUCH.format(p))),
    "builtins.exec": lambda p: call("__builtin__.exec", value(TOUCH.format(p))),
    "builtins.getattr": lambda p: (
        call("builtins.getattr", call("builtins.__import__", value("os")), value("system"))
        + b"(" + value(f"touch {p}") + b"tR"
    ),
    "builtins.open": lambda p: call(  # inside what is allowed
        "collections.OrderedDict", b"](" + value("a") + call("builtins.open", value(p), value("w"))
        + b"\x86a"
    ),
    "subprocess.Popen": lambda p: (  # by NEWOBJ
        name("subprocess.Popen") + value((("touch", p),)) + b"\x81"
    ),
}  # fmt: skip
OTHER = {
    "torch.load": call("torch.load", value("other.pth")),
    "torch.storage._load_from_bytes": call("torch.storage._load_from_bytes", value(b"x")),
    "torch._utils._rebuild_tensor_v2.__globals__": name("torch._utils._rebuild_tensor_v2")[:-1]
    + b".__globals__\n",
    "torch.jit._script.unpackage_script_module": name("torch.jit._script.unpackage_script_module"),
    "codecs.encode": call("codecs.encode", value("x"), value("rot13")),
    "copyreg._reconstructor": name("copyreg._reconstructor"),
    "segret_jax.convert.torch_rebuild._tensor": name("segret_jax.convert.torch_rebuild._tensor"),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("asked", LIVE)
def test_nothing_is_run_that_pickle_would_run(
    tmp_path: Path, asked: str, write: Callable[..., Path]
) -> None:
    marker = tmp_path / "marker"
    attack = LIVE[asked](str(marker))
    message = fault(write(tmp_path / "a", state(w=tensor(), x=attack)))
    assert f"asks for {asked!r}, which is not needed to rebuild tensors; it was not run" in message
    assert not marker.exists()


@pytest.mark.parametrize("asked", ["os.system", "builtins.eval", "builtins.getattr"])
def test_the_attacks_are_live(tmp_path: Path, asked: str) -> None:
    marker = tmp_path / "marker"
    pickle.loads(b"\x80\x02" + LIVE[asked](str(marker)) + b".")
    assert marker.exists()


@pytest.mark.parametrize("asked", OTHER)
def test_other_names_are_refused(tmp_path: Path, asked: str) -> None:
    assert f"asks for {asked!r}" in fault(write_zip(tmp_path / "a", state(w=OTHER[asked])))


# What an honest writer never leaves, and nothing of it may be believed.

WRONG = {
    "another storage's end": (tensor(1), "leaves its storage of 4 elements"),
    "a stride too far": (tensor(0, (2, 2), (3, 1)), "leaves its storage of 4 elements"),
    "a negative stride": (tensor(3, (4,), (-1,)), "impossible sizes"),
    "a negative offset": (tensor(-1), "impossible sizes"),
    "more strides": (tensor(0, (4,), (1, 1)), "impossible sizes"),
    "too many axes": (tensor(0, (1,) * 65, (1,) * 65), "impossible sizes"),
    "a size that is no number": (tensor(0, (4.0,), (1,)), "impossible sizes"),
    "a huge size": (tensor(0, (2**70,), (0,)), "impossible sizes"),
    "a shape that is no tuple": (tensor(0, [4], [1]), "arguments of wrong types"),
    "no storage": (tensor(0, (4,), (1,), value("0")), "arguments of wrong types"),
    "a class for a storage": (tensor(0, (4,), (1,), name("torch.Size")), "of wrong types"),
    "too few arguments": (call("torch._utils._rebuild_tensor_v2", storage()), "is damaged"),
    "a negated view": (
        tensor(0, (4,), (1,), storage(), value({"neg": True})), "stored conjugate or negated"
    ),
    "a storage longer than its bytes": (tensor(0, (1,), (1,), storage("1", 5)), "shorter than"),
    "a storage that is missing": (tensor(0, (4,), (1,), storage("2")), "is damaged"),
    "a storage elsewhere": (tensor(0, (4,), (1,), storage("../data.pkl")), "is damaged"),
    "a storage of another kind": (
        tensor(0, (4,), (1,), storage("0", 4, "torch.QInt8Storage")), "'torch.QInt8Storage'"
    ),
    "a storage of two lengths": (b"(" + storage() + storage("0", 2) + b"t", "two types or lengths"),
    "a module for a storage": (value(("module", 0, "0", "cpu", 4)) + b"Q", "form that is not read"),
    "attributes for a name": (name("torch.Size") + value({"x": 1}) + b"b", "a state for a Name"),
    "a call of data": (value("os.system") + b"(tR", "is damaged"),
    "a call of a dtype": (name("torch.float32") + b"(tR", "is damaged"),
    "an empty stack": (b"0000000", "is damaged"),
    "a missing memo": (b"h\x07", "is damaged"),
    "a deep key": (b"}" + b"(" * 5_000 + b"t" * 5_000 + b"Ns", "a tuple as key"),
    "an opcode of protocol 0": (b"(ios\nsystem\n", "pickle opcode INST"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_impossible_pickle_is_refused(tmp_path: Path, case: str) -> None:
    item, reason = WRONG[case]
    assert reason in fault(
        write_zip(tmp_path / "a", state(model=state(w=tensor(), x=item)), **{"data/1": FOUR})
    )


def test_deep_data_does_no_harm(tmp_path: Path) -> None:
    deep = b"(" * 5_000 + b"t" * 5_000
    found = read_tensors(write_zip(tmp_path / "a", state(w=tensor(), x=deep)))
    assert found.metadata == {"x": [["tuple of 1"]]}


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    for path in (
        write_zip(tmp_path / "zip", state(w=tensor()), byteorder=b"big"),
        write_legacy(tmp_path / "legacy", state(w=tensor()), little=False),
    ):
        assert "was written on a big-endian machine" in fault(path)


def test_state_dicts_are_found_or_listed(tmp_path: Path) -> None:
    two = write_zip(tmp_path / "a", state(teacher=state(w=tensor()), student=state(v=tensor())))
    assert "choose one of teacher, student" in fault(two)
    assert list(read_tensors(two, wrapper="student").tensors) == ["v"]
    both = state(state_dict_ema=state(w=tensor()), state_dict=state(v=tensor()))
    assert read_tensors(write_zip(tmp_path / "a", both)).wrapper == "state_dict"
    for content in (
        value({"epoch": 3}),
        b"](" + tensor() + b"e",
        state(a=state(b=state(c=tensor()))),
    ):
        assert "save model.state_dict() again" in fault(write_zip(tmp_path / "a", content))


# Damage.


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


def test_legacy_files_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_legacy(path, state(w=tensor()), numel=3)
    assert "a storage has another length than its tensors say" in fault(path)
    write_legacy(path, state(w=tensor()), protocol=1)
    assert "unknown protocol of PyTorch" in fault(path)
    path.write_bytes(write_legacy(path, state(w=tensor())).read_bytes()[:-1])
    assert "the end is missing" in fault(path)


@pytest.mark.parametrize(
    "file", ["checkpoint_zip.pth", "checkpoint_legacy.pth", "tensors.safetensors"]
)
def test_damage_anywhere_ends_in_one_message(tmp_path: Path, file: str) -> None:
    content, path = (DATA / file).read_bytes(), tmp_path / "a"
    expected = read_tensors(DATA / file).tensors
    for cut in range(0, len(content), len(content) // 30):
        path.write_bytes(content[:cut])
        fault(path)
    for place in range(0, len(content), len(content) // 30):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = read_tensors(path).tensors
        except InputError:
            continue
        # A zip has checksums: what is read at all is right, if perhaps under other metadata.
        if file.endswith("zip.pth"):
            for key in expected:
                np.testing.assert_array_equal(found[key], expected[key])
