"""The way back: every tensor of the original, by its name, bit for bit."""

import math
import resource
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from segret_jax.config import ModelConfig
from segret_jax.convert.exporting import export_tensors, write_tensors
from segret_jax.convert.importing import Imported, import_tensors
from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from segret_jax.models.factory import abstract
from tests import golden_weights as golden
from tests.conftest import slow
from tests.convert.models import CLASSIFIER, random_tensors
from tests.settings import segret

VARIANTS = ("tiny", "small", "base", "large")
POOL = np.random.default_rng(0).random(2**23, np.float32)


def released(name: str) -> dict[str, np.ndarray]:
    """Random tensors by the names of a released model; its constants are computed, not stored."""
    tensors = {}
    for key, shape in golden.keys(name).items():
        size, seed = math.prod(shape), zlib.crc32(key.encode())
        start = seed % (POOL.size - size)  # each its own values, without memory of its own
        if key.endswith("num_batches_tracked"):
            tensors[key] = np.array(seed)
        elif not any(part in key for part in golden.COMPUTED):
            tensors[key] = POOL[start : start + size].reshape(shape)
    return tensors


def exported(result: Imported, *, keep: bool = True) -> dict[str, np.ndarray]:
    return export_tensors(
        result.recognized.model,
        result.recognized.num_classes,
        result.bundle,
        unused=result.unused if keep else None,
    )


RELEASED = {  # trainable parameters where SegMAN's specification states them
    **{f"{family}_{v}": None for family in ("segret", "rmt", "segman_encoder") for v in VARIANTS},
    "segman_tiny": 6_397_260, "segman_small": 29_424_636, "segman_base": 51_802_820,
    "segman_large": 92_335_734, "segman_tiny_cityscapes": 6_380_361, "segman_tiny_coco": 6_399_969,
    "segman_small_cityscapes": 29_974_153, "segman_small_coco": 29_427_681,
    "segman_base_cityscapes": 51_779_109, "segman_base_coco": 51_806_621,
    "segman_large_cityscapes": 92_306_259, "segman_large_coco": 92_340_459,
    "segman_encoder_small": 25_507_582,
}  # fmt: skip


@pytest.mark.parametrize("name", [x if "tiny" in x else slow(x)[0] for x in RELEASED])
def test_import_and_export_are_bit_equal_under_the_released_names(name: str):
    """So a second import is, too: it meets the same tensors."""
    tensors = released(name)
    result = import_tensors(tensors, ModelConfig())
    assert RELEASED[name] in (result.bundle.num_params, None)
    back = exported(result)
    assert {n: t.shape for n, t in back.items()} == golden.keys(name)
    for key, tensor in tensors.items():
        assert back[key].dtype == tensor.dtype, key
        assert np.array_equal(back[key], tensor), key


@pytest.mark.usefixtures("mini")
def test_tensors_not_imported_get_the_originals_initial_values() -> None:
    result = import_tensors(
        random_tensors() | {"decode_head.conv_seg.bias": np.ones(5)}, ModelConfig()
    )
    assert exported(result)["decode_head.conv_seg.bias"].all()
    back = exported(result, keep=False)
    assert back["decode_head.conv_seg.weight"].shape == (5, 128, 1, 1)
    assert not back["decode_head.conv_seg.bias"].any()
    counter = back["decode_head.linear_fuse.bn.num_batches_tracked"]
    assert (counter.shape, counter.dtype, int(counter)) == ((), np.int64, 0)
    for stage, (width, span) in enumerate([(8, 4), (16, 4), (16, 6), (16, 6)]):
        half = width // 2 // 2  # pairs of channels, of each of two heads
        angles = [10000 ** -(j / (half - 1)) for j in range(half) for _ in range(2)]
        decays = [math.log(1 - 2 ** (-2 - span * i / 2)) for i in range(2)]
        for name, expected in (("angle", angles), ("decay", decays)):
            constant = back[f"backbone.layers.{stage}.Relpos.{name}"]
            assert constant.dtype == np.float32
            np.testing.assert_allclose(constant, expected, rtol=1e-6)


@pytest.mark.usefixtures("mini")
def test_constants_are_kept_as_found_unless_16_bits_rounded_them() -> None:
    original = random_tensors()
    full = {n: np.nextafter(t, 0) if "Relpos" in n else t for n, t in original.items()}
    back = exported(import_tensors(full, ModelConfig()))
    assert all(np.array_equal(back[name], full[name]) for name in full)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = {n: t.astype(dtype) for n, t in original.items()}
        back = exported(import_tensors(half, ModelConfig()))
        for name, tensor in half.items():
            expected = original[name] if "Relpos" in name else tensor.astype(np.float32)
            assert np.array_equal(back[name], expected), name


@pytest.mark.usefixtures("mini")
def test_a_counter_of_another_type_comes_back_unless_it_overflowed() -> None:
    tensors = random_tensors()
    counts = [
        (np.float16(1024), 1024), (ml_dtypes.bfloat16(2048), 2048), (np.float16(math.inf), 0),
        (np.float32(math.nan), 0), (np.uint64(2**63), 0), (np.int64(2**63 - 1), 2**63 - 1),
    ]  # fmt: skip
    names = [name for name in tensors if name.endswith("num_batches_tracked")][: len(counts)]
    for name, (count, _) in zip(names, counts, strict=True):
        tensors[name] = np.array(count)
    back = exported(import_tensors(tensors, ModelConfig()))
    assert {back[name].dtype.name for name in names} == {"int64"}
    assert [int(back[name]) for name in names] == [expected for _, expected in counts]


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("ending", ["safetensors", "npz", "pth"])
def test_each_format_reads_back_bit_equal(tmp_path: Path, ending: str) -> None:
    if ending == "pth":
        pytest.importorskip("torch")
    path, tensors = tmp_path / f"new/model.{ending}", random_tensors(**CLASSIFIER, token_head=True)
    write_tensors(path, tensors, {"format": "pt"})
    found = read_tensors(path)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found.tensors[name], tensor, strict=True)
    if ending == "safetensors":
        assert found.metadata == {"format": "pt"}
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"w": np.zeros(2, np.float32)}
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"PyTorch, which is not installed.* write \.safetensors"):
        write_tensors(tmp_path / "model.pth", tensors, {})
    with pytest.raises(InputError, match=r"model\.onnx: give a name that ends in \.safetensors"):
        write_tensors(tmp_path / "model.onnx", tensors, {})
    assert not list(tmp_path.iterdir())
    write_tensors(tmp_path / "model.npz", tensors, {})
    with pytest.raises(InputError, match=r"model\.npz exists"):
        write_tensors(tmp_path / "model.npz", tensors, {})


@pytest.mark.parametrize("name", ["model.NPZ", "model.Safetensors"])
def test_endings_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / name, {"w": np.ones(2, np.float32)}, {})
    assert read_tensors(tmp_path / name).tensors["w"].all()


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_full_disk_is_reported_with_path_and_reason(ending: str, tmp_path: Path) -> None:
    path, (soft, hard) = tmp_path / f"m.{ending}", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError) as caught:
            write_tensors(path, {"w": np.zeros(2**16, np.float32)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"cannot write {path}: File too large"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_and_an_impossible_folder_are_reported_for_pytorch_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(tensors: dict[str, np.ndarray], path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    torch = SimpleNamespace(save=save, from_numpy=np.asarray)
    monkeypatch.setitem(sys.modules, "torch", torch)
    tensors = {"w": np.zeros(2, np.float32)}
    with pytest.raises(InputError, match=r"cannot write .*model\.PTH: PyTorch could not"):
        write_tensors(tmp_path / "model.PTH", tensors, {})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file/a\.npz: File exists"):
        write_tensors(tmp_path / "file/a.npz", tensors, {})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (segret(rotary=True), "model.settings.rotary is True and ffn_conv False"),
        (segret(decay="post_softmax"), "model.settings.decay is 'post_softmax'"),
    ],
)
def test_a_model_that_pytorch_files_cannot_describe_is_refused(
    model: ModelConfig, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_tensors(model, 5, abstract(model, 5))
