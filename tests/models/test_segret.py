"""What the options of the model change, and how every leaf starts."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.models import blocks
from segret_jax.models.blocks import Encoder
from segret_jax.models.factory import build
from segret_jax.models.layers import SampleKeys
from segret_jax.models.segret import variants
from segret_jax.models.segret.classifier import Classifier
from segret_jax.models.segret.encoder import EncoderOptions, build_encoder
from segret_jax.models.segret.model import SegRet
from segret_jax.models.segret.variants import VARIANTS, Variant
from tests.models.test_decoder import randomize, relative_error, run
from tests.models.test_layers import noise
from tests.settings import segret

CLASSES = 7
IMAGE = jnp.asarray(noise(2, 32, 40, 3))


def model_of(**options: Any) -> SegRet:
    return SegRet(segret(**options), CLASSES, rngs=nnx.Rngs(0))


def leaves_of(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(e.key) for e in path): np.asarray(leaf) for path, leaf in leaves}


def parameters(**options: Any) -> dict[str, np.ndarray]:
    return leaves_of(build(segret(**options), CLASSES, seed=0)[1])


def with_shared_weights(**options: Any) -> SegRet:
    """A model whose leaves are random, and the same for every option where shapes agree."""
    model, plain = model_of(**options), model_of()
    randomize(plain)
    shared = dict(nnx.to_flat_state(nnx.state(plain)))
    flat = [(path, shared.get(path, leaf)) for path, leaf in nnx.to_flat_state(nnx.state(model))]
    nnx.update(model, nnx.from_flat_state(flat))
    return model


@functools.cache
def plain_logits() -> np.ndarray:
    return run(with_shared_weights(), IMAGE)


@pytest.mark.parametrize("option", [{"rotary": True}, {"decay": "post_softmax"}])
def test_rotary_and_decay_change_the_output_but_no_parameter(mini, option):
    plain, changed = with_shared_weights(), with_shared_weights(**option)
    shapes = [jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(m))) for m in (plain, changed)]
    assert shapes[0] == shapes[1]
    assert relative_error(run(changed, IMAGE), run(plain, IMAGE)) > 1e-3


def test_rotary_does_nothing_to_one_pixel(mini):
    """Of a 4 × 4 image every stage has one pixel, at position 0."""
    pixel = jnp.asarray(noise(1, 4, 4, 3))
    rotated = run(with_shared_weights(rotary=True), pixel)
    np.testing.assert_allclose(rotated, run(with_shared_weights(), pixel), rtol=1e-5)


def test_ffn_conv_adds_its_kernel_and_bias_to_each_block_and_a_residual(mini):
    plain, added = parameters(), parameters(ffn_conv=True)
    expected = {}
    for stage, width in enumerate(mini.widths):
        path = f"encoder/stages/{stage}/0/ffn/dwconv"
        expected |= {f"{path}/kernel": (3, 3, 2 * width), f"{path}/bias": (2 * width,)}
    assert {name: added[name].shape for name in added.keys() - plain.keys()} == expected
    assert plain.keys() < added.keys()

    model = with_shared_weights(ffn_conv=True)
    assert relative_error(run(model, IMAGE), plain_logits()) > 1e-3
    for (block,) in model.encoder.stages:
        conv = block.ffn.dwconv
        conv.kernel[...], conv.bias[...] = 0 * conv.kernel[...], 0 * conv.bias[...]
    np.testing.assert_allclose(run(model, IMAGE), plain_logits(), rtol=1e-5)


def test_zero_branch_and_decoder_channels(mini):
    plain, ablation = parameters(), parameters(zero_branch=False)
    assert plain.keys() - ablation.keys() == {name for name in plain if "zero_" in name}
    wide = parameters(decoder_channels=24)
    assert wide["decoder/fuse/kernel"].shape == (96, 24)
    assert plain["decoder/fuse/kernel"].shape == (64, 16)
    changed = run(with_shared_weights(zero_branch=False), IMAGE)
    assert relative_error(changed, plain_logits()) > 1e-3


def test_max_scores_changes_nothing(mini):
    blocked = run(with_shared_weights(max_scores=200), IMAGE)
    assert relative_error(blocked, plain_logits()) < 1e-5


def test_bfloat16_computes_near_float32_with_float32_parameters_and_logits(mini):
    narrow, exact = with_shared_weights(dtype="bfloat16"), plain_logits()
    logits = run(narrow, IMAGE)
    assert logits.dtype == np.float32
    assert 1e-4 < relative_error(logits, exact) < 0.1  # the lower bound: it does compute narrowly
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(narrow)))


def test_every_layer_computes_in_bfloat16(mini):
    """One float32 bias would promote all that follows and cost twice the memory in silence."""
    model = model_of(dtype="bfloat16", ffn_conv=True, rotary=True)
    graph, variables = nnx.split(model)

    def outputs(variables: Any, x: jax.Array, hidden: jax.Array) -> list[jax.Array]:
        model = nnx.merge(graph, variables)
        block, projection = model.encoder.stages[3][0], model.decoder.projections[3]
        parts = (block.pos, block.norm1, block.retention, block.ffn)
        return [
            *model.encoder(IMAGE, train=True),
            *(part(x) for part in parts),
            block.ffn.dwconv(hidden),
            projection(x, train=True),
        ]

    x, hidden = (jax.ShapeDtypeStruct((1, 2, 3, c), jnp.bfloat16) for c in (16, 32))
    dtypes = [out.dtype for out in jax.eval_shape(outputs, variables, x, hidden)]
    assert dtypes == [jnp.bfloat16] * 10


def test_token_head_adds_half_its_largest_logit(mini):
    settings = segret(task="classification", rotary=True, ffn_conv=True, token_head=True)
    model = Classifier(settings, 5, rngs=nnx.Rngs(0))
    image = jnp.asarray(noise(2, 64, 70, 3))
    model.aux_head.kernel[...] = jnp.asarray(noise(16, 5))
    model.aux_head.bias[...] = jnp.asarray(noise(5))
    graph, variables = nnx.split(model)

    @jax.jit
    def outputs(variables: Any, image: jax.Array) -> list[jax.Array]:
        model = nnx.merge(graph, variables)
        with_tokens = model(image)
        model.has_token_head = False
        return [with_tokens, model(image), model.encoder(image)[-1]]

    with_tokens, without, tokens = map(np.asarray, outputs(variables, image))
    assert tokens.shape[1:3] == (2, 3)
    scores = tokens.reshape(2, 6, 16) @ noise(16, 5) + noise(5)
    assert np.abs(scores.max(axis=1)).max() > 0.1
    np.testing.assert_allclose(with_tokens, without + 0.5 * scores.max(axis=1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"remat": (3,)}, {"drop_path": 0.0}])
def test_a_scan_over_blocks_equals_applying_them_one_by_one(mini, monkeypatch, options):
    """Outputs and gradients, with the same draws for drop path and for the decoder's dropout."""
    monkeypatch.setitem(variants.VARIANTS, "tiny", dataclasses.replace(mini, depths=(1, 1, 3, 1)))
    monkeypatch.setattr(blocks, "MIN_LOOP", 3)
    model = model_of(**{"drop_path": 0.5} | options)
    randomize(model)

    def run_with(*, loop: bool, seed: int = 0) -> tuple[bool, Any]:
        model.encoder.has_loops = loop
        graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
        params, batch_stats = map(nnx.to_pure_dict, states)

        def loss(params: Any, batch_stats: Any) -> jax.Array:
            merged = nnx.merge(graph, params, batch_stats)
            keys = SampleKeys(jax.random.key(seed), jnp.arange(2))
            return jnp.sum(jnp.sin(merged(IMAGE, train=True, keys=keys)))

        traced = jax.jit(jax.value_and_grad(loss)).trace(params, batch_stats)
        found = traced.lower().compile()(params, batch_stats)
        return "length=3" in str(traced.jaxpr), found

    (has_loop, found), (has_none, expected) = run_with(loop=True), run_with(loop=False)
    assert (has_loop, has_none) == (True, False)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    for leaf, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-6 * scale)
    assert float(run_with(loop=True, seed=1)[1][0]) != pytest.approx(float(found[0]))


def drop_rates(encoder: Encoder) -> list[float]:
    return [block.drop_rate for blocks in encoder.stages for block in blocks]


@pytest.mark.parametrize("name", VARIANTS)
def test_drop_path_grows_linearly_over_all_blocks(name):
    variant: Variant = VARIANTS[name]
    largest = {"tiny": 0.1, "small": 0.15, "base": 0.4, "large": 0.5}[name]
    narrow = Variant(
        (2,) * 4, variant.depths, (1,) * 4, (4.0,) * 4, (1,) * 4, (False,) * 4, (False,) * 4,
        variant.drop_path, 2,
    )  # fmt: skip
    encoder = build_encoder(
        narrow, drop_path=variant.drop_path, options=EncoderOptions(), rngs=nnx.Rngs(0)
    )
    total = {"tiny": 14, "small": 29, "base": 45, "large": 45}[name]
    assert drop_rates(encoder) == pytest.approx(np.linspace(0, largest, total))


def test_drop_path_of_the_config_replaces_the_variants(mini):
    rates = np.linspace(0, 1, 4)
    assert drop_rates(model_of().encoder) == pytest.approx(0.1 * rates)
    assert drop_rates(model_of(drop_path=0.6).encoder) == pytest.approx(0.6 * rates)
    assert drop_rates(model_of(drop_path=0.0).encoder) == [0, 0, 0, 0]


def test_drop_path_acts_in_training_alone(mini):
    model = model_of(drop_path=0.9)
    model.decoder.dropout = 0.0
    np.testing.assert_array_equal(run(model, IMAGE, dropout=0), run(model, IMAGE))
    first, other, again = (run(model, IMAGE, train=True, dropout=s) for s in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_every_leaf_starts_as_the_specification_says(mini):
    leaves = parameters(ffn_conv=True)
    for name, leaf in leaves.items():
        kind = name.rsplit("/", 2)[-2:]
        if "norm" in name:
            assert (leaf == (1 if kind[1] == "scale" else 0)).all(), name
        elif "gamma" in name:
            assert (leaf == np.float32(1e-6)).all(), name
        elif "zero_conv" in name:
            assert (leaf == 0).all(), name
        elif kind[0] in ("q", "k", "v", "out", "fc1", "fc2", "linear"):
            assert_normal(leaf, 0.02, name) if kind[1] == "kernel" else assert_zero(leaf, name)
        elif kind == ["fuse", "kernel"]:
            assert_normal(leaf, math.sqrt(2 / 16), name)
        else:  # convolutions: PyTorch's default, biases too
            kernel = leaves[name.rsplit("/", 1)[0] + "/kernel"]
            fan_in = kernel[..., 0].size  # one channel's k×k taps, for depthwise ones too
            assert_uniform(leaf, 1 / math.sqrt(fan_in), name)


def assert_zero(leaf: np.ndarray, name: str) -> None:
    assert (leaf == 0).all(), name


def assert_normal(leaf: np.ndarray, std: float, name: str) -> None:
    assert abs(leaf.std() / std - 1) < 4 / math.sqrt(2 * leaf.size), name
    assert abs(leaf.mean()) < 4 * std / math.sqrt(leaf.size), name


def assert_uniform(leaf: np.ndarray, bound: float, name: str) -> None:
    assert np.abs(leaf).max() <= bound, name
    assert abs(leaf.std() / (bound / math.sqrt(3)) - 1) < 3 / math.sqrt(leaf.size), name


def test_initialization_follows_the_seed_and_differs_across_leaves(mini):
    draws = [build(ModelConfig(), CLASSES, seed=seed)[1] for seed in (0, 0, 1)]
    first, again, other = map(leaves_of, draws)
    random = [name for name, leaf in first.items() if leaf.std() > 0]
    assert len(random) > 50
    heads = set()
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        if name in random:
            assert (first[name] != other[name]).any(), name
            standard = first[name] / np.abs(first[name]).max()
            heads.add(tuple(np.round(standard.ravel()[:4], 4)))
    assert len(heads) == len(random)  # no two begin alike
