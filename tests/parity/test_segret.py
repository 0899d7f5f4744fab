"""The models against tensors that the released PyTorch code computed."""

import jax
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.convert.torch_names import torch_key
from segret_jax.models.rmt import VARIANTS, Classifier
from segret_jax.training.state import abstract
from tests import golden_weights as golden

# Released parameter counts at 150 classes, without the never used decode_head.conv_seg.
PARAMETERS = {"tiny": 13_474_998, "small": 25_983_862, "base": 53_029_822, "large": 95_795_150}
UNUSED = ("decode_head.conv_seg", "num_batches_tracked", "Relpos.angle", "Relpos.decay")


@pytest.fixture(scope="module", params=PARAMETERS)
def variant(request):
    return request.param


def test_every_stage_and_the_logits_equal_the_original(variant):
    expected = golden.load(f"segret_{variant}")
    config = ModelConfig(variant=variant, matmul_precision="highest")
    graph, params, batch_stats = abstract(config, 150)
    params, batch_stats = (golden.filled(t, f"segret_{variant}") for t in (params, batch_stats))

    @jax.jit
    def forward(params, batch_stats, image):
        model = nnx.merge(graph, params, batch_stats)
        maps = model.encoder(image)
        return [*maps, model.decoder(maps)]

    cases = sum(key.endswith("input_shape") for key in expected)
    assert cases == 2
    for case in range(cases):
        image = golden.noise(f"input/{case}", tuple(expected[f"{case}/input_shape"]))
        outputs = forward(params, batch_stats, image.transpose(0, 2, 3, 1))
        for name, output in zip(("c1", "c2", "c3", "c4", "logits"), outputs, strict=True):
            nchw = np.transpose(output, (0, 3, 1, 2))
            error = golden.relative_error(nchw, expected[f"{case}/{name}"])
            assert error < 1e-5, (case, name, error)


def test_parameters_are_exactly_the_released_ones(variant):
    _, params, batch_stats = abstract(ModelConfig(variant=variant), 150)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[variant]
    leaves = jax.tree_util.tree_leaves_with_path((params, batch_stats))
    ours = {torch_key(tuple(entry.key for entry in path[1:])) for path, _ in leaves}
    theirs = {k for k in golden.keys(f"segret_{variant}") if not any(u in k for u in UNUSED)}
    assert ours == theirs


def test_rmt_imagenet_classifiers_equal_the_original(variant):
    """Both have what SegRet leaves out: the rotary phase and the FFN's convolution."""
    expected = golden.load("rmt_imagenet_logits")
    model = Classifier(VARIANTS[variant], rngs=nnx.Rngs(0))
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = (
        golden.filled(nnx.to_pure_dict(t), f"rmt_{variant}") for t in (params, batch_stats)
    )
    image = golden.noise("input/cls", (2, 3, 64, 96)).transpose(0, 2, 3, 1)
    logits = jax.jit(lambda p, s, x: nnx.merge(graph, p, s)(x))(params, batch_stats, image)
    assert golden.relative_error(logits, expected[variant]) < 1e-5
