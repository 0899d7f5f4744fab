"""The way back: every tensor of the original, by its name, bit for bit."""

import math
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from segret_jax.config import ModelConfig
from segret_jax.convert.exporting import export_tensors, write_tensors
from segret_jax.convert.importing import Imported, import_tensors
from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from tests import golden_weights as golden
from tests.convert.models import CLASSIFIER, random_tensors

POOL = np.random.default_rng(0).random(2**22, np.float32)


def released(name: str) -> dict[str, np.ndarray]:
    """Random tensors by the names of a released model; its constants are computed, not stored."""
    tensors = {}
    for key, shape in golden.keys(name).items():
        size, seed = math.prod(shape), zlib.crc32(key.encode())
        start = seed % (POOL.size - size)  # each its own values, without memory of its own
        if key.endswith("num_batches_tracked"):
            tensors[key] = np.array(seed)
        elif "Relpos" not in key:
            tensors[key] = POOL[start : start + size].reshape(shape)
    return tensors


def exported(result: Imported, *, keep: bool = True) -> dict[str, np.ndarray]:
    return export_tensors(
        result.family.model,
        result.family.num_classes,
        result.params,
        result.batch_stats,
        unused=result.unused if keep else None,
    )


@pytest.mark.parametrize("variant", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("family", ["segret", "rmt"])
def test_import_and_export_are_bit_equal_under_the_released_names(family: str, variant: str):
    """So a second import is, too: it meets the same tensors."""
    tensors = released(f"{family}_{variant}")
    back = exported(import_tensors(tensors, ModelConfig()))
    assert {n: t.shape for n, t in back.items()} == golden.keys(f"{family}_{variant}")
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype, name
        assert np.array_equal(back[name], tensor), name


@pytest.mark.usefixtures("mini")
def test_what_was_not_imported_gets_the_values_of_a_new_original() -> None:
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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(rotary=True), "model.rotary is True and model.ffn_conv False"),
        (ModelConfig(decay="post_softmax"), "model.decay is 'post_softmax'"),
    ],
)
def test_a_model_that_pytorch_files_cannot_tell_is_refused(
    model: ModelConfig, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_tensors(model, 5, {}, {})
