"""Small files that ask for much memory or time, and metadata of any size."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from segret_jax.checkpoint import safetensors
from segret_jax.convert import tensors, torch_file
from segret_jax.convert.metadata import plain_metadata
from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from tests.convert.forge import call, name, state, tensor, value, write_zip
from tests.convert.test_tensors import fault, write_safetensors

MEMORY = 8_000_000  # each of the files below would take 16 MB at least, if what it asks were done
TEXT = value("a" * 30_000)[:-2]  # without its place in the memo


def repeated(function: str, argument: bytes, times: int = 600) -> bytes:
    """Call a function of one remembered argument many times."""
    start = name(function) + b"q\x60" + argument + b"q\x61"
    return b"(" + start + b"h\x60h\x61\x85R" * times + b"t"


BOMBS = {
    "a path that doubles": b"(" + name("pathlib.PosixPath") + b"q\x60" + value("a" * 10)[:-2]
    + b"q\x61" + b"h\x60h\x61h\x61\x86Rq\x61" * 20 + b"t",
    "a device of a long name": repeated("torch.device", TEXT),
    "bytes of one text": b"(" + name("_codecs.encode") + b"q\x60" + TEXT + b"q\x61"
    + value("latin1") + b"q\x62" + b"h\x60h\x61h\x62\x86R" * 600 + b"t",
    "a dict of one list": repeated(
        "collections.OrderedDict", b"](" + b"".join(value((i, i))[:-2] for i in range(999)) + b"e"
    ),
    "many arguments": name("argparse.Namespace") + b"q\x60(" + b"N" * 5_000 + b"tq\x61("
    + b"h\x60h\x61R" * 600 + b"t",
    "text as arguments": name("argparse.Namespace") + b"q\x60" + TEXT + b"q\x61("
    + b"h\x60h\x61R" * 100 + b"t",
    "lists of one text": value("a" * 301)[:-2] + b"q\x600](" + b"h\x60" * 200 + b"eq\x610]("
    + b"h\x61" * 200 + b"e",
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path: Path, case: str) -> None:
    path = write_zip(tmp_path / "a", state(w=tensor(), x=BOMBS[case]))
    assert path.stat().st_size < 100_000
    read_tensors(write_zip(tmp_path / "plain", state(w=tensor())))  # imports what reading needs
    tracemalloc.start()
    try:
        json.dumps(read_tensors(path).metadata)
    except InputError:
        fault(path)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY


def test_millions_of_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a", state(w=tensor(), x=b"(" + b"N" * 500 + b"t"))
    read_tensors(path)
    monkeypatch.setattr(torch_file, "MAX_OPCODES", 500)
    assert "holds millions of values beside its tensors" in fault(path)


def test_many_tensors_of_one_memory_are_refused(tmp_path: Path) -> None:
    some = {f"w{i}": tensor() for i in range(8)}
    assert len(read_tensors(write_zip(tmp_path / "a", state(**some))).tensors) == 8
    path = write_zip(tmp_path / "a", state(w=tensor(), **some))
    assert "has many tensors that share one memory" in fault(path)


def test_a_dict_under_many_keys_is_searched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[object] = []
    search = tensors._has_tensors
    monkeypatch.setattr(tensors, "_has_tensors", lambda v: searched.append(v) or search(v))
    shared = {f"k{i}": b"h\x60" for i in range(50)}
    path = write_zip(tmp_path / "a", b"}" + value(1) + b"Nsq\x600" + state(w=tensor(), **shared))
    read_tensors(path)
    assert len(searched) <= 3  # the shared one, the tensor, and the whole


def test_a_long_header_of_safetensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_safetensors(
        tmp_path / "a",
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        bytes(4),
    )
    read_tensors(path)
    monkeypatch.setattr(safetensors, "MAX_HEADER", 50)
    assert "has a header of 61 bytes" in fault(path)


def test_many_state_dicts_are_listed_in_short(tmp_path: Path) -> None:
    some = {f"ema{i}": state(w=tensor()) for i in range(200)}
    message = fault(write_zip(tmp_path / "a", state(**some)), wrapper="zzz")
    assert message.startswith("unknown state dict 'zzz'. Known: ema0, ema1, ")


@pytest.mark.parametrize(
    "key",
    [value(2**70), b"(" + value(1) * 9 + b"t", b"(" + value((1,)) + b"t", b"]"],
    ids=["a huge number", "a long tuple", "a deep tuple", "a list"],
)
def test_keys_that_are_long_to_hash_are_refused(tmp_path: Path, key: bytes) -> None:
    path = write_zip(tmp_path / "a", state(w=tensor(), x=b"}" + key + b"Ns"))
    assert " as key)" in fault(path)


def test_nonfinite_numbers_are_reported_in_json(tmp_path: Path) -> None:
    scalar = call(
        "numpy.core.multiarray.scalar",
        call("numpy.dtype", value("f4")) + value((3, "<")) + b"b",
        call("_codecs.encode", value(struct.pack("<f", np.inf).decode("latin1")), value("latin1")),
    )
    content = state(w=tensor(), loss=value(float("nan")), best=scalar, last=value([-np.inf, 1.5]))
    metadata = read_tensors(write_zip(tmp_path / "a", content)).metadata
    assert metadata == {"loss": "nan", "best": "inf", "last": ["-inf", 1.5]}
    json.dumps(metadata, allow_nan=False)


def test_metadata_is_cut_off_and_printable() -> None:
    assert plain_metadata({"a": "x" * 301}) == {"a": "x" * 300 + "…"}
    assert plain_metadata({("k", 1): "red \x1b[31m\nline \ud800"}) == {
        "k, 1": r"red \x1b[31m\nline \ud800"
    }
    assert plain_metadata({"a": 2**63, "b": list(range(257)), "c": {"d": {"e": {"f": 1}}}}) == {
        "a": "int", "b": "list of 257", "c": {"d": {"e": "dict of 1"}},
    }  # fmt: skip
    many = plain_metadata({i: i for i in range(300)})
    assert len(many) == 257
    assert many["…"] == "44 more"


def test_names_that_no_terminal_prints_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for bad, told in (("\x1b[31m", r"\x1b[31m"), ("a" * 301, "a" * 300 + "…")):
        path = write_safetensors(tmp_path / "a", {bad: entry}, bytes(4))
        assert f"has a tensor named '{told}'" in fault(path)
