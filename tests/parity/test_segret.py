"""The models against tensors that the released PyTorch code computed."""

import jax
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.models.rmt import VARIANTS, Classifier
from segret_jax.models.segret import SegRet
from tests import golden_weights as golden

# Released parameter counts at 150 classes, without the never used decode_head.conv_seg.
PARAMETERS = {"tiny": 13_474_998, "small": 25_983_862, "base": 53_029_822, "large": 95_795_150}
UNUSED = ("decode_head.conv_seg", "num_batches_tracked", "Relpos.angle", "Relpos.decay")


def segret(variant: str, num_classes: int = 150, **options) -> SegRet:
    config = ModelConfig(variant=variant, matmul_precision="highest", **options)
    return nnx.eval_shape(lambda: SegRet(config, num_classes, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module", params=PARAMETERS)
def variant(request):
    return request.param


def test_every_stage_and_the_logits_equal_the_original(variant):
    expected = golden.load(f"segret_{variant}")
    model = segret(variant)
    golden.fill(model, golden.keys(f"segret_{variant}"))
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state, image):
        model = nnx.merge(graph, state)
        maps = model.encoder(image)
        return [*maps, model.decoder(maps)]

    for case in range(sum(key.endswith("input_shape") for key in expected)):
        image = golden.noise(f"input/{case}", tuple(expected[f"{case}/input_shape"]))
        outputs = forward(state, image.transpose(0, 2, 3, 1))
        for name, output in zip(("c1", "c2", "c3", "c4", "logits"), outputs, strict=True):
            error = golden.relative_error(
                np.transpose(output, (0, 3, 1, 2)), expected[f"{case}/{name}"]
            )
            assert error < 1e-5, (case, name, error)


def test_parameters_are_exactly_the_released_ones(variant):
    model = segret(variant)
    sizes = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in sizes) == PARAMETERS[variant]
    state = nnx.to_flat_state(nnx.state(model))
    ours = {golden.torch_key(path) for path, _ in state}
    theirs = {k for k in golden.keys(f"segret_{variant}") if not any(u in k for u in UNUSED)}
    assert ours == theirs


def test_rmt_imagenet_classifiers_equal_the_original(variant):
    """Both have what SegRet leaves out: the rotary phase and the FFN's convolution."""
    expected = golden.load("rmt_imagenet_logits")
    model = nnx.eval_shape(lambda: Classifier(VARIANTS[variant], rngs=nnx.Rngs(0)))
    golden.fill(model, golden.keys(f"rmt_{variant}"), prefix=False)
    image = golden.noise("input/cls", (2, 3, 64, 96)).transpose(0, 2, 3, 1)
    logits = nnx.jit(lambda model, image: model(image))(model, image)
    assert golden.relative_error(logits, expected[variant]) < 1e-5
