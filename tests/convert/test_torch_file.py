"""Forged files: what is honest is read, nothing is run, nothing impossible is believed."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segret_jax.convert.tensors import read_tensors
from tests.convert.forge import (
    FOUR,
    call,
    name,
    state,
    storage,
    tensor,
    value,
    write_legacy,
    write_zip,
)
from tests.convert.test_tensors import fault


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
    "builtins.__import__": lambda p: (
        call("builtins.getattr", call("builtins.__import__", value("os")), value("system"))
        + b"(" + value(f"touch {p}") + b"tR"
    ),
    "builtins.open": lambda p: call(  # inside what is allowed
        "collections.OrderedDict", b"](" + value("a") + call("builtins.open", value(p), value("w"))
        + b"\x86a"
    ),
    "functools.partial": lambda p: (  # by BUILD, which calls __setstate__
        call("functools.partial", name("builtins.print")) + b"(" + name("os.system")
        + value((f"touch {p}",)) + b"}Ntb)R"
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
    "builtins.getattr": call(
        "builtins.getattr", name("collections.OrderedDict"), value("fromkeys")
    ),
    "subprocess.getoutput": call("commands.getoutput", value("touch x")),  # as in Python 2
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


@pytest.mark.parametrize(
    "asked", ["os.system", "builtins.eval", "builtins.__import__", "functools.partial"]
)
def test_pickle_itself_would_run_the_attacks(tmp_path: Path, asked: str) -> None:
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
    "a negative stride": (tensor(3, (4,), (-1,)), "impossible type or size"),
    "a negative offset": (tensor(-1), "impossible type or size"),
    "more strides": (tensor(0, (4,), (1, 1)), "impossible type or size"),
    "too many axes": (tensor(0, (1,) * 65, (1,) * 65), "impossible type or size"),
    "a size that is no number": (tensor(0, (4.0,), (1,)), "impossible type or size"),
    "a huge size": (tensor(0, (2**70,), (0,)), "impossible type or size"),
    "a view larger than its storage": (
        tensor(0, (2**40,), (0,)), "an expanded tensor of shape (1099511627776,) in a storage of 4"
    ),
    "a shape of many digits": (tensor(0, (2**62,) * 64, (2**62,) * 64), "leaves its storage of 4"),
    "a large view of many digits": (tensor(0, (2**62,) * 64, (0,) * 64), "an expanded tensor of"),
    "a shape that is no tuple": (tensor(0, [4], [1]), "impossible type or size"),
    "no storage": (tensor(0, (4,), (1,), value("0")), "impossible type or size"),
    "a class for a storage": (tensor(0, (4,), (1,), name("torch.Size")), "impossible type or size"),
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
    "a view of a storage": (
        b"(" + storage()[1:-2] + value(("0", 0, 4)) + b"tQ", "form that is not read"
    ),
    "attributes for a name": (name("torch.Size") + value({"x": 1}) + b"b", "a state for a Name"),
    "attributes for a storage": (storage() + value({"numel": 9}) + b"b", "a state for a Storage"),
    "attributes for a tensor": (tensor() + value({"offset": 9}) + b"b", "a state for a Tensor"),
    "a call of data": (value("os.system") + b"(tR", "is damaged"),
    "a call of a dtype": (name("torch.float32") + b"(tR", "is damaged"),
    "an empty stack": (b"0000000", "is damaged"),
    "a missing memo": (b"h\x07", "is damaged"),
    "a deep key": (b"}" + b"(" * 5_000 + b"t" * 5_000 + b"Ns", "a tuple as key"),
    "arguments that are text": (name("torch.Size") + value("ab") + b"R", "without a tuple"),
    "a call by INST": (b"(ios\nsystem\n", "pickle opcode INST"),
    "a call by OBJ": (b"(" + name("torch.Size") + b"o", "pickle opcode OBJ"),
    "a storage by text": (b"Pstorage\n", "pickle opcode PERSID"),
    "a registered class": (b"\x82\x01", "pickle opcode EXT1"),
    "a class of keywords": (name("argparse.Namespace") + b")}\x92", "pickle opcode NEWOBJ_EX"),
    "a number of a million digits": (b"I" + b"1" * 10**6 + b"\n", "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_impossible_pickle_is_refused(tmp_path: Path, case: str) -> None:
    item, reason = WRONG[case]
    assert reason in fault(
        write_zip(tmp_path / "a", state(model=state(w=tensor(), x=item)), **{"data/1": FOUR})
    )


@pytest.mark.parametrize("start", [b"(", b"\x8f("], ids=["frozenset", "set"])
def test_deep_data_does_no_harm(tmp_path: Path, start: bytes) -> None:
    deep = b"(" * 100_000 + b"t" * 100_000  # its hash would overflow Python's own stack
    end = b"\x90" if start != b"(" else b"\x91"
    found = read_tensors(write_zip(tmp_path / "a", state(w=tensor(), x=deep, y=start + deep + end)))
    assert found.metadata == {"x": [["tuple of 1"]], "y": [["tuple of 1"]]}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_frame_of_any_length_takes_no_memory(tmp_path: Path, write: Callable[..., Path]) -> None:
    frame = b"\x95" + struct.pack("<Q", 2**64 - 1)
    assert read_tensors(write(tmp_path / "a", frame + state(w=tensor()))).metadata == {}


def test_attributes_are_data(tmp_path: Path) -> None:
    given = {"__class__": "os", "__setstate__": 1, "__dict__": {"a": 2}}
    content = state(w=tensor(), x=call("argparse.Namespace") + value(given) + b"b")
    assert read_tensors(write_zip(tmp_path / "a", content)).metadata == {"x": given}


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    for path in (
        write_zip(tmp_path / "zip", state(w=tensor()), byteorder=b"big"),
        write_legacy(tmp_path / "legacy", state(w=tensor()), little=False),
    ):
        assert "was written on a big-endian machine" in fault(path)


def test_state_dicts_are_found_or_listed(tmp_path: Path) -> None:
    two = write_zip(tmp_path / "a", state(teacher=state(w=tensor()), student=state(v=tensor())))
    assert "give --wrapper NAME, one of teacher, student" in fault(two)
    assert list(read_tensors(two, wrapper="student").tensors) == ["v"]
    # Of timm's files the average is taken; of RMT's not.
    for first, second in (("state_dict_ema", "state_dict"), ("model", "model_ema")):
        both = state(**{second: state(v=tensor()), first: state(w=tensor())})
        found = read_tensors(write_zip(tmp_path / "a", both))
        assert (found.wrapper, found.other_wrappers) == (first, (second,))
    for content in (
        value({"epoch": 3}),
        b"](" + tensor() + b"e",
        state(a=state(b=state(c=tensor()))),
    ):
        assert "save model.state_dict() again" in fault(write_zip(tmp_path / "a", content))
