"""Files of real PyTorch and safetensors (data/README.md), and of NumPy."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from tests.convert import forge

DATA = Path(__file__).parent / "data"
BASE = (np.arange(24, dtype=np.float32) / 8 - 1).reshape(4, 6)  # as in data/README.md
DTYPES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": ml_dtypes.bfloat16,
    "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
}  # fmt: skip
EXPECTED = {name: BASE.astype(dtype) for name, dtype in DTYPES.items()} | {
    "uint8": abs(BASE).astype("u1"),
    "uint16": abs(BASE).astype("u2"),
    "bool": BASE > 0,
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": BASE,
    "offset": BASE.ravel()[6:18],
    "transposed": BASE.T,
    "strided": BASE[1::2, ::3],
    "expanded": np.broadcast_to(BASE[0, 3], (2, 5)),
    "tied": BASE,
    "kernel": BASE.reshape(2, 3, 2, 2),
}


def assert_same(tensors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype, name
        np.testing.assert_array_equal(tensors[name], value, err_msg=name, strict=True)


def fault(path: Path, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        read_tensors(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 600
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("file", "kind"),
    [("zip", "torch zip"), ("protocol4", "torch zip"), ("legacy", "torch legacy")],
)
def test_files_of_pytorch_give_every_dtype_and_view(tmp_path: Path, file: str, kind: str) -> None:
    renamed = tmp_path / "no extension"  # the content tells
    renamed.write_bytes((DATA / f"{file}.pth").read_bytes())
    found = read_tensors(renamed)
    expected = {name: np.asarray(value) for name, value in EXPECTED.items()}
    assert_same(found.tensors, expected)
    assert (found.format, found.wrapper, found.prefix, found.metadata) == (kind, "", "", {})
    assert not any(array.flags.writeable for n, array in found.tensors.items() if n != "empty")
    tensors = found.tensors
    assert np.shares_memory(tensors["tied"], tensors["offset"])  # a storage is read once


def test_safetensors_give_every_dtype() -> None:
    found = read_tensors(DATA / "tensors.safetensors")
    expected = {name: np.asarray(value) for name, value in EXPECTED.items() if name != "tied"}
    assert_same(found.tensors, expected)
    assert (found.format, found.metadata) == ("safetensors", {"format": "pt"})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_every_dtype(tmp_path: Path, save: Callable[..., None]) -> None:
    expected = {name: np.asarray(value) for name, value in EXPECTED.items()}
    save(tmp_path / "a.npz", **expected)
    found = read_tensors(tmp_path / "a.npz")
    assert_same(found.tensors, expected)
    assert (found.format, found.wrapper, found.metadata) == ("npz", "", {})


@pytest.mark.parametrize("file", ["checkpoint_zip.pth", "checkpoint_legacy.pth"])
def test_checkpoints_are_unwrapped_and_their_metadata_kept(file: str) -> None:
    found = read_tensors(DATA / file)
    assert (found.wrapper, found.other_wrappers, found.prefix) == (
        "model", ("model_ema",), "module.",
    )  # fmt: skip
    weight = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    np.testing.assert_array_equal(found.tensors["0.weight"], weight)
    assert found.tensors["1.num_batches_tracked"].item() == 1
    assert len(found.tensors) == 7
    ema = read_tensors(DATA / file, wrapper="model_ema")
    assert (ema.wrapper, ema.other_wrappers) == ("model_ema", ("model",))
    np.testing.assert_array_equal(ema.tensors["0.weight"], weight + 1)
    assert found.metadata.pop("optimizer")["state"]["0"] == "dict of 3"
    assert found.metadata.pop("lr_scheduler")["milestones"] == {"2": 1, "5": 1}
    assert found.metadata.pop("scaler")["scale"] == 65536.0
    assert found.metadata == {
        "epoch": 3,
        "max_accuracy": 81.25,
        "rng": "numpy.ndarray",
        "args": {
            "lr": 0.001, "output_dir": "/out", "betas": [0.9, 0.999], "device": "cuda:0",
            "dtype": "torch.float32", "tags": ["a"],
        },
    }  # fmt: skip
    json.dumps(ema.metadata)
    assert found.sha256 == hashlib.sha256((DATA / file).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sparse", "asks for 'torch._utils._rebuild_sparse_tensor'"),
        ("quantized", "asks for 'torch._utils._rebuild_qtensor'"),
        ("module", "asks for 'torch.nn.modules.container.Sequential'"),
    ],
)
def test_other_than_plain_tensors_are_rejected_by_name(file: str, name: str) -> None:
    message = fault(DATA / f"{file}.pth")
    assert name in message
    assert "load it in PyTorch and save model.state_dict() alone" in message


def write_safetensors(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(0, 8, [2], "F8_E4M3")}, "has tensor 'a' of type 'F8_E4M3'"),
        ({"a": entry(0, 8, [3])}, "the place of tensor 'a' does not fit its shape"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, "the place of tensor 'b'"),
        ({"a": entry(4, 8, [1])}, "the place of tensor 'a'"),
        ({"a": entry(0, -4, [-1])}, "the shape of tensor 'a' is impossible"),
        ({"a": entry(0, 8, [2**63])}, "the shape of tensor 'a' is impossible"),
        ({"a": entry(0, 4, [1] * 65)}, "the shape of tensor 'a' is impossible"),
        ({"a": entry(0, 4, [1])}, "not as long as its header says"),
        ({"a": entry(0, 16, [4])}, "is damaged or cut off"),
        ({"__metadata__": {}}, "not as long as its header says"),
    ],
)
def test_inconsistent_safetensors_are_rejected(tmp_path: Path, header: object, reason: str) -> None:
    assert reason in fault(write_safetensors(tmp_path / "a", header, bytes(8)))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([{}], object), "Object arrays cannot be loaded when allow_pickle=False"),
        (np.array(["text"]), "has array 'a' of type <U4; save it as float32"),
        (np.zeros(2, ">f4"), "has array 'a' of type >f4; save it as float32"),
        (np.zeros(2, complex), "has array 'a' of type complex128; save it as float32"),
    ],
)
def test_npz_with_other_than_numbers_is_refused(
    tmp_path: Path, array: np.ndarray, reason: str
) -> None:
    np.savez(tmp_path / "a.npz", a=array)
    assert reason in fault(tmp_path / "a.npz")


def test_an_npz_that_claims_to_be_huge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100_000))
    monkeypatch.setattr("segret_jax.convert.tensors.MAX_NPZ_BYTES", 10_000)
    assert "claims to unpack to more than" in fault(tmp_path / "a.npz")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    assert fault(path) == "No such file or directory"
    assert fault(tmp_path) == "Is a directory"
    for content in (b"", b"PNG", b"\x80\x02}q\x00.", b"<html>not found</html>" * 9):
        path.write_bytes(content)
        assert fault(path).startswith("is no file of torch.save, .safetensors or .npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    assert "a zip archive, but neither of PyTorch nor of NumPy" in fault(path)


def test_a_wrapper_that_is_not_there_is_named() -> None:
    message = fault(DATA / "checkpoint_zip.pth", wrapper="model_em")
    assert message.startswith("unknown state dict 'model_em': did you mean 'model_ema'?")
    for file in ("zip.pth", "tensors.safetensors"):
        expected = "has no 'model'; its tensors lie at the top, choose nothing"
        assert fault(DATA / file, wrapper="model") == expected


def test_tensors_beside_the_state_dict_are_named(tmp_path: Path) -> None:
    content = forge.state(model=forge.state(w=forge.tensor()), stray=forge.tensor())
    file = forge.write_zip(tmp_path / "a.pth", content)
    found = read_tensors(file)
    assert (list(found.tensors), found.beside, found.metadata) == (["w"], ("stray",), {})
