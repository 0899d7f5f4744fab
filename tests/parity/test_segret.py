"""The models, read from PyTorch files, against tensors that the released PyTorch code computed."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.convert.exporting import write_tensors
from segret_jax.convert.importing import Imported, import_tensors
from segret_jax.convert.tensors import read_tensors
from tests import golden_weights as golden
from tests.conftest import slow
from tests.convert import forge

# Released parameter counts at 150 classes, without the never used decode_head.conv_seg.
PARAMETERS = {"tiny": 13_474_998, "small": 25_983_862, "base": 53_029_822, "large": 95_795_150}
UNUSED = ("decode_head.conv_seg", "num_batches_tracked", "Relpos.angle", "Relpos.decay")


def write_torch_zip(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write what `torch.save({"model": state_dict})` does, without PyTorch."""
    parts, storages = {}, {}
    for key, (name, array) in enumerate(tensors.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        stored = forge.storage(str(key), array.size)
        parts[name] = forge.tensor(0, array.shape, strides, stored)
        storages[f"data/{key}"] = array.tobytes()
    forge.write_zip(path, forge.state(model=forge.state(**parts)), **storages)


def assert_equal(tensors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Of 400 MB: numpy.testing would take seconds."""
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert np.array_equal(tensors[name], tensor), name


def through_files(folder: Path, name: str) -> Imported:
    """Import the golden weights from a file; each format gives the same tensors, bit for bit."""
    tensors, found = golden.tensors(name), {}
    for ending in ("npz", "safetensors", "pth"):
        path = folder / f"{name}.{ending}"
        if ending == "pth":
            write_torch_zip(path, tensors)
        else:
            write_tensors(path, tensors, {})
        found = read_tensors(path).tensors
        path.unlink()
        assert_equal(found, tensors)
    return import_tensors(found, ModelConfig(matmul_precision="highest"))


pytestmark = pytest.mark.usefixtures("optimized")  # the program that users run


@pytest.fixture(scope="module", params=["tiny", *slow("small", "base", "large")])
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def segret(variant, tmp_path_factory):
    return through_files(tmp_path_factory.mktemp("segret"), f"segret_{variant}")


def test_every_stage_and_the_logits_equal_the_original(variant, segret):
    expected, graph = golden.load(f"segret_{variant}"), segret.bundle.graph

    @jax.jit
    def forward(params, batch_stats, image):
        model = nnx.merge(graph, params, batch_stats)
        maps = model.encoder(image)
        return [*maps, model.decoder(maps)]

    cases = sum(key.endswith("input_shape") for key in expected)
    assert cases == 2
    for case in range(cases):
        image = golden.noise(f"input/{case}", tuple(expected[f"{case}/input_shape"]))
        outputs = forward(*segret.bundle.variables, image.transpose(0, 2, 3, 1))
        for name, output in zip(("c1", "c2", "c3", "c4", "logits"), outputs, strict=True):
            nchw = np.transpose(output, (0, 3, 1, 2))
            error = golden.relative_error(nchw, expected[f"{case}/{name}"])
            # Rounding, mostly of 1e-6; 1.2e-5 is stage 3 of large on a processor without AVX-512.
            assert error < 2e-5, (case, name, error)


def test_parameters_are_exactly_the_released_ones(variant, segret):
    assert segret.bundle.num_params == PARAMETERS[variant]
    theirs = {k for k in golden.keys(f"segret_{variant}") if not any(u in k for u in UNUSED)}
    assert segret.leaves.keys() == theirs
    assert segret.dropped.keys() == {f"decode_head.conv_seg.{leaf}" for leaf in ("weight", "bias")}


def test_rmt_imagenet_classifiers_equal_the_original(variant, tmp_path):
    """Both have what SegRet leaves out: the rotary phase and the FFN's convolution."""
    expected, rmt = golden.load("rmt_imagenet_logits"), through_files(tmp_path, f"rmt_{variant}")
    graph = rmt.bundle.graph
    image = golden.noise("input/cls", (2, 3, 64, 96)).transpose(0, 2, 3, 1)
    forward = jax.jit(lambda p, s, x: nnx.merge(graph, p, s)(x))
    logits = forward(*rmt.bundle.variables, image)
    assert golden.relative_error(logits, expected[variant]) < 1e-5


@pytest.mark.parametrize("family", ["segret", "rmt"])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_files_of_real_pytorch_hold_the_same_tensors(variant, family, options, tmp_path):
    torch = pytest.importorskip("torch")
    tensors, path = golden.tensors(f"{family}_{variant}"), tmp_path / "a.pth"
    torch.save({"model": {n: torch.tensor(t) for n, t in tensors.items()}}, path, **options)
    assert_equal(read_tensors(path).tensors, tensors)
    path.unlink()
