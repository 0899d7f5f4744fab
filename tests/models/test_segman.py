"""SegMAN: its own parts, sizes and forms; tests/parity compares all of it with the original."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import Config, ModelConfig, choose_family, validate
from segret_jax.errors import InputError
from segret_jax.models.factory import abstract, build
from segret_jax.models.kernels import Kernels
from segret_jax.models.segman import torch_format
from segret_jax.models.segman.classifier import Classifier
from segret_jax.models.segman.encoder import rotate
from segret_jax.models.segman.global_attention import TOKENS, bicubic_matrix, global_attention
from segret_jax.models.segman.model import SegMAN
from segret_jax.trees import named_leaves
from tests.models.test_decoder import randomize
from tests.models.test_layers import noise
from tests.models.test_retention import equations

IMAGES = jnp.asarray(noise(2, 224, 256, 3))


def segman(**options: Any) -> ModelConfig:
    config = ModelConfig(**options)
    choose_family(config, "segman")
    return config


def logits_and_grads(**options: Any) -> tuple[Any, Any]:
    """Of a model with the same weights whatever the options are."""
    model = SegMAN(segman(**options), 5, rngs=nnx.Rngs(0))
    randomize(model)
    graph, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)

    def total(params: Any, statistics: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params, statistics)(IMAGES, train=True)
        return jnp.sum(jnp.sin(logits)), logits

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, logits), grads = step(*map(nnx.to_pure_dict, trees))
    return logits, grads


@pytest.mark.slow
def test_the_reference_computes_the_same_with_its_gradients(mini, monkeypatch):
    # Rounding turns a ReLU near 0 on or off, and with it its gradient.
    monkeypatch.setattr(jax.nn, "relu", jax.nn.softplus)
    logits, grads = logits_and_grads()
    plain_logits, plain_grads = logits_and_grads(kernels="reference")
    np.testing.assert_allclose(plain_logits, logits, atol=1e-4 * np.abs(logits).max())
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for plain, auto in zip(*map(jax.tree.leaves, (plain_grads, grads)), strict=True):
        # Some gradients are rounding: a batch norm cancels that of a bias before it.
        np.testing.assert_allclose(plain, auto, atol=1e-3 * np.abs(auto).max() + 1e-6 * largest)


def test_the_reference_is_plain_operations_and_can_be_exported(mini):
    graph, *variables = abstract(segman(kernels="reference"), 5)
    leaves, tree = jax.tree.flatten(variables)

    @jax.jit
    def network(leaves: list[Any], image: Any) -> jax.Array:
        return nnx.merge(graph, *jax.tree.unflatten(tree, leaves))(image)

    image = jax.ShapeDtypeStruct((1, 224, 256, 3), jnp.float32)
    found = {e.primitive.name for e in equations(jax.make_jaxpr(network)(leaves, image).jaxpr)}
    assert not found & {"pallas_call", "custom_call", "ffi_call", "while", "scan"}
    exported = jax.export.export(network, platforms=("cpu", "cuda", "tpu"))(leaves, image)
    assert "custom_call" not in exported.mlir_module()
    assert exported.out_avals[0].shape == (1, 28, 32, 5)


@pytest.mark.parametrize(
    ("shape", "admitted"),
    [
        ((224, 256), True), ((250, 282), True), ((232, 256), False), ((192, 256), False),
        ((256, 264), False),
    ],
)  # fmt: skip
def test_sizes_by_which_windows_and_decoder_do_not_fit_are_refused(mini, shape, admitted):
    model = SegMAN(segman(), 5, rngs=nnx.Rngs(0))
    image = jnp.zeros((1, *shape, 3))
    if admitted:
        assert jax.eval_shape(model, image).shape == (1, -(-shape[0] // 8), -(-shape[1] // 8), 5)
    else:
        refusal = f"the input is {shape[0]}x{shape[1]}, which SegMAN does not take"
        with pytest.raises(InputError, match=refusal):
            jax.eval_shape(model, image)


def test_the_classifier_refuses_sizes_by_which_windows_do_not_fit(mini):
    model = Classifier(segman(task="classification"), 5, rngs=nnx.Rngs(0))
    assert jax.eval_shape(model, jnp.zeros((1, 193, 232, 3))).shape == (1, 5)
    with pytest.raises(InputError, match="the input is 224x192, which SegMAN does not take"):
        jax.eval_shape(model, jnp.zeros((1, 224, 192, 3)))


@pytest.mark.parametrize(
    ("path", "bound", "std"),
    [  # uniform up to a bound, or normal
        ("encoder/stages/0/0/ffn/dwconv/kernel", None, 0.02),
        ("encoder/stages/0/0/mixer/qkv/kernel", None, 0.02),
        ("encoder/stages/0/0/pos1/kernel", None, 0.02),
        ("encoder/stem/convs/3/kernel", None, 0.02),
        ("encoder/stages/0/0/ffn/dwconv/bias", 0, 0),
        ("encoder/stages/0/0/mixer/lepe/bias", 0, 0),
        ("decoder/projections/0/kernel", 64**-0.5, None),
        ("decoder/projections/0/bias", 64**-0.5, None),
        ("decoder/block/ffn/fc1/bias", 384**-0.5, None),
        ("decoder/block/ffn/fc2/kernel", 1536**-0.5, None),
        ("decoder/block/ffn/dwconv/kernel", 1 / 3, None),
        ("decoder/block/scan/project", 384**-0.5, None),
        ("decoder/down4/conv/kernel", None, (2 / (25 * 512)) ** 0.5),
        ("decoder/collect1/conv/kernel", None, (2 / 128) ** 0.5),
        ("decoder/collect2/conv/kernel", None, (2 / 128) ** 0.5),
        ("decoder/classify/kernel", None, 0.01),
        ("decoder/classify/bias", 0, 0),
    ],
)
def test_initial_values_are_those_of_the_released_code(initial, path, bound, std):
    leaf = np.asarray(initial[path])
    if bound is None:
        assert leaf.std() == pytest.approx(std, rel=0.15)
    else:
        assert 0.9 * bound <= np.abs(leaf).max() <= bound
        assert leaf.std() == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.fixture(scope="module")
def initial() -> dict[str, jax.Array]:
    return named_leaves(build(segman(), 150, seed=0).params)


@pytest.mark.parametrize("side", [4, 2])
def test_collected_pixels_are_a_1x1_convolution_after_pixel_unshuffle(side):
    """PyTorch's order of channels: those of the input, then row and column."""
    c, out, x = 3, 5, noise(1, 8, 12, 3)
    weight = noise(out, c * side**2, 1, 1)
    path = ("decoder", {4: "collect1", 2: "collect2"}[side], "conv", "kernel")
    kernel = jnp.asarray(torch_format.from_torch(weight, path))
    found = jax.lax.conv_general_dilated(
        jnp.asarray(x), kernel, (side, side), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    cells = x.reshape(1, 8 // side, side, 12 // side, side, c)
    unshuffled = np.transpose(cells, (0, 1, 3, 5, 2, 4)).reshape(1, 8 // side, 12 // side, -1)
    np.testing.assert_allclose(found, unshuffled @ weight[:, :, 0, 0].T, atol=1e-5)
    assert np.array_equal(torch_format.to_torch(np.asarray(kernel), path), weight)


def test_training_with_one_image_is_refused(mini):
    model = SegMAN(segman(), 5, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="does not train with one image per batch"):
        model(IMAGES[:1], train=True)
    config = Config(model=segman())
    config.train.batch_size, config.train.accumulate = 4, 4
    with pytest.raises(InputError, match=re.escape("train.accumulate")):
        validate(config)


def test_the_pooled_norm_has_the_unbiased_variance_of_the_images(mini):
    """Of two images it is twice the biased one; the pooled map is the fused one's mean."""
    decoder = SegMAN(segman(), 5, rngs=nnx.Rngs(0)).decoder
    maps = [jnp.asarray(noise(2, s, s, c)) for s, c in zip((8, 4, 2, 1), mini.widths, strict=True)]
    fused, norm = [], decoder.pool.norm
    decoder.fuse.activate = lambda x, *, train: fused.append(x) or x
    decoder(maps, train=True)
    pooled = fused[0].mean((1, 2)) @ decoder.pool.conv.kernel[0, 0]
    np.testing.assert_allclose(norm.mean[...], 0.1 * pooled.mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * 2 * pooled.var(0), rtol=1e-5)


def test_rotation_depends_on_differences_of_positions_alone():
    q, k = (jnp.broadcast_to(noise(24, seed=s), (1, 5, 6, 1, 24)) for s in (1, 2))
    q, k = rotate(q)[0, :, :, 0], rotate(k)[0, :, :, 0]
    for (y, x), (y2, x2) in (((0, 0), (1, 2)), ((2, 1), (0, 4))):
        scores = [q[y + i, x + j] @ k[y2 + i, x2 + j] for i, j in ((0, 0), (1, 0), (2, 1))]
        np.testing.assert_allclose(scores, scores[0], rtol=1e-4)
    assert abs(q[0, 0] @ k[1, 2] - q[0, 0] @ k[2, 1]) > 1e-3


def test_rotation_scales_each_head():
    x = jnp.asarray(noise(1, 5, 6, 2, 24))
    found = rotate(x, scale=[0.25, 3.0])
    np.testing.assert_allclose(found[..., 0, :], 0.25 * rotate(x[..., :1, :])[..., 0, :], rtol=1e-5)
    np.testing.assert_allclose(found[..., 1, :], 3 * rotate(x[..., 1:, :])[..., 0, :], rtol=1e-5)


def test_the_global_bias_is_resized_as_pytorch_does():
    assert np.array_equal(bicubic_matrix(jnp.arange(TOKENS), TOKENS), np.eye(TOKENS))
    matrix = np.asarray(bicubic_matrix(jnp.arange(63), 63))
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    # Position 10 is 10.5·49/63 − 0.5 = 7.666…; Keys' kernel with a = −0.75.
    t = 2 / 3
    a = -0.75
    far = [a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a for s in (1 + t, 2 - t)]
    near = [(a + 2) * s**3 - (a + 3) * s**2 + 1 for s in (t, 1 - t)]
    np.testing.assert_allclose(matrix[10, 6:10], [far[0], *near, far[1]], atol=1e-5)
    assert np.count_nonzero(matrix[10]) == 4


@pytest.mark.parametrize("length", [256, 352])
def test_the_weights_of_longer_sequences_equal_those_of_each_position(length):
    """Keys' cubic convolution with a = −0.75, one neighbor after the other."""
    a, expected = -0.75, np.zeros((length, TOKENS))
    for i in range(length):
        source = (i + 0.5) * TOKENS / length - 0.5
        for neighbor in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            s = abs(source - neighbor)
            near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
            expected[i, min(max(neighbor, 0), TOKENS - 1)] += near if s <= 1 else far
    np.testing.assert_allclose(bicubic_matrix(jnp.arange(length), length), expected, atol=2e-5)


@pytest.mark.parametrize("kernels", Kernels)
def test_global_attention_equals_its_formula_also_in_padded_arrays(kernels):
    h, w, n, d = 7, 8, 2, 4
    q, k, v = (noise(1, h, w, n, d, seed=s) for s in range(3))
    bias = noise(n, TOKENS, TOKENS)
    matrix = np.float64(bicubic_matrix(jnp.arange(h * w), h * w))
    flat = [np.float64(t).reshape(h * w, n, d) for t in (q, k, v)]
    scores = np.einsum("qnd,knd->nqk", *flat[:2]) + matrix @ bias @ matrix.T
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("nqk,knd->qnd", weights, flat[2]).reshape(h, w, n, d)

    found = global_attention(*map(jnp.asarray, (q, k, v, bias)), kernels=kernels)
    np.testing.assert_allclose(found[0], expected, atol=2e-5)
    padded = [np.pad(t, ((0, 0), (0, 2), (0, 3), (0, 0), (0, 0))) + 0.0 for t in (q, k, v)]
    for t in padded:
        t[:, h:], t[:, :, w:] = 9, 9
    found = global_attention(*map(jnp.asarray, (*padded, bias)), kernels=kernels, size=(h, w))
    np.testing.assert_allclose(found[0, :h, :w], expected, atol=2e-5)
