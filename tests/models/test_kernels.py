"""The choice of kernels by device, and the reference: plain formulas, the same results."""

import functools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import Config, ModelConfig, choose_family
from segret_jax.evaluation.inference import compiled_programs
from segret_jax.models import kernels
from segret_jax.models.blocks import apply_layer, split_rows
from segret_jax.models.factory import abstract
from segret_jax.models.kernels import Platform, platform_of
from segret_jax.models.layers import (
    DepthwiseConv,
    LayerNorm,
    resize_bilinear,
    resize_by_products,
)
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.segret import variants
from segret_jax.models.segret.encoder import encoder_options
from segret_jax.models.segret.model import SegRet
from segret_jax.parallel.mesh import data_mesh
from segret_jax.settings import rules
from segret_jax.training.initialization import abstract_state
from segret_jax.training.step import make_train_step
from tests.models.test_decoder import randomize
from tests.models.test_layers import noise
from tests.models.test_retention import equations, size
from tests.settings import segret

IMAGE = jnp.asarray(noise(1, 37, 51, 3))


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tiny` a small model whose heads the Triton kernels support."""
    small = variants.Variant(
        widths=(32,) * 4, depths=(1,) * 4, heads=(2,) * 4, decay_spans=(4.0,) * 4,
        ffn_ratios=(1,) * 4, decomposed=(True, False, False, False), layer_scale=(False,) * 4,
        drop_path=0.0, decoder_channels=8,
    )  # fmt: skip
    monkeypatch.setitem(variants.VARIANTS, "tiny", small)


def gpus(*capabilities: str) -> list[Any]:
    return [SimpleNamespace(platform="gpu", compute_capability=text) for text in capabilities]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (gpus("7.5"), 7.5),
        (gpus("9.0", "7.0"), 7.0),  # one program for all: the oldest decides
        (gpus("12.0"), 12.0),
        (gpus("gfx90a"), None),  # AMD's
        ([SimpleNamespace(platform="tpu")], None),
        (jax.devices()[:1], None),
    ],
)
def test_the_capability_is_that_of_the_oldest_nvidia_gpu(devices, expected):
    assert platform_of(devices).capability == expected


def test_a_gpu_without_triton_kernels_is_announced_once_in_one_line(capsys):
    kernels.announce_blocks.cache_clear()
    for devices in (gpus("8.0"), gpus("7.5"), gpus("7.5", "7.5")):
        encoder_options(ModelConfig(), platform_of(devices))
    (line,) = capsys.readouterr().err.splitlines()
    assert "compute capability 7.5" in line
    assert "computes in blocks" in line
    assert "bfloat16 is slow" in line


def test_the_platform_alone_announces_nothing_of_retention(capsys):
    kernels.announce_blocks.cache_clear()
    platform_of(gpus("7.5"))
    assert capsys.readouterr().err == ""


def lowered_for_cuda(traced: Any) -> str:
    try:
        return traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # jax 0.11 asks for a GPU
        pytest.skip(str(error))


@pytest.mark.parametrize(("capability", "has_triton"), [(7.5, False), (8.0, True)])
def test_evaluation_has_triton_kernels_from_capability_8_on(fitting, capability, has_triton):
    bundle = abstract(ModelConfig(), 5, platform=Platform(capability=capability))
    network = compiled_programs(bundle.graph, data_mesh()).network
    pixels = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    text = lowered_for_cuda(network.trace(bundle.variables, pixels, None))
    assert ("triton" in text) == has_triton


@pytest.mark.parametrize(
    ("capability", "has_triton"),
    [(7.0, False), pytest.param(8.0, True, marks=pytest.mark.slow)],
)
def test_a_train_step_has_triton_kernels_from_capability_8_on(fitting, capability, has_triton):
    """In the backward pass, too."""
    config = Config()
    platform = Platform(capability=capability)
    graph, optimizer, state = abstract_state(config, 5, platform=platform)
    step = make_train_step(graph, optimizer, config.train, data_mesh())
    batch = {
        "image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((2, 32, 32), jnp.uint8),
        "index": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    traced = step.trace(state, batch)
    assert ("triton" in lowered_for_cuda(traced)) == has_triton


@pytest.mark.parametrize("decomposed", [True, False])
def test_an_old_gpu_computes_in_blocks_that_hold_few_scores(decomposed):
    q = k = v = jnp.zeros((1, 9, 11, 2, 16))

    def largest(capability: float, max_scores: int) -> int:
        def total(*args: jax.Array) -> jax.Array:
            return blocked_retention(
                *args, (-0.5, -0.1), decomposed=decomposed, max_scores=max_scores,
                platform=Platform(capability=capability),
            ).sum()  # fmt: skip

        jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(q, k, v).jaxpr
        steps = list(equations(jaxpr, "cuda"))
        assert any(e.primitive.name == "pallas_call" for e in steps) == (capability >= 8)
        return max(map(size, steps))

    few, many = 11**2, (11**2 if decomposed else 99**2)
    assert largest(7.5, few) <= q.size  # a line's keys and queries, rather than scores
    assert largest(7.5, 2**25) >= many
    assert largest(8.0, 2**25) <= q.size + 2 * 99


def model_of(**options: Any) -> SegRet:
    model = SegRet(segret(**options), 5, rngs=nnx.Rngs(0))
    randomize(model)
    return model


def logits_and_grads(model: SegRet) -> tuple[Any, Any]:
    """The logits and the gradients of a function of them."""
    graph, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)

    def total(params: Any, statistics: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params, statistics)(IMAGE)
        return jnp.sum(jnp.sin(logits)), logits

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, logits), grads = step(*map(nnx.to_pure_dict, trees))
    return logits, grads


@pytest.mark.parametrize(
    "options", [{}, {"rotary": True, "ffn_conv": True, "decay": "post_softmax"}], ids=str
)
def test_the_reference_computes_the_same_with_its_gradients(mini, options):
    logits, grads = logits_and_grads(model_of(**options))
    plain_logits, plain_grads = logits_and_grads(model_of(kernels="reference", **options))
    np.testing.assert_allclose(plain_logits, logits, atol=1e-5 * np.abs(logits).max())
    for plain, auto in zip(*map(jax.tree.leaves, (plain_grads, grads)), strict=True):
        # 5e-5: softmax cancels the gradient of the keys' bias, of which rounding is left.
        np.testing.assert_allclose(plain, auto, atol=2e-4 * np.abs(auto).max() + 5e-5)


SPECIAL = {"platform_index", "pallas_call", "custom_call", "ffi_call", "cond", "while", "scan"}


@pytest.mark.parametrize("kind", ["auto", "reference"])
def test_the_reference_is_plain_operations_alone(mini, kind):
    """In both directions; `auto` shows that the walk finds what it looks for."""
    graph, params, statistics = nnx.split(model_of(kernels=kind, ffn_conv=True), nnx.Param, ...)

    def total(params: Any) -> jax.Array:
        return nnx.merge(graph, params, statistics)(IMAGE).sum()

    traced = total if kind == "auto" else jax.value_and_grad(total)
    jaxpr = jax.make_jaxpr(traced)(params).jaxpr
    found = SPECIAL & {e.primitive.name for e in equations(jaxpr)}
    assert bool(found) == (kind == "auto")
    if kind == "reference":
        text = jax.jit(total).lower(params).as_text()
        assert "custom_call" not in text
        assert "optimization_barrier" not in text


@pytest.mark.parametrize("family", ["segret", "segman"])
@pytest.mark.parametrize("is_cpu", [True, False])
def test_for_cpus_no_other_platform_is_traced(mini, family, is_cpu):
    """Neither a choice of platforms, whose branches would all be traced, nor Pallas."""
    config = ModelConfig()
    choose_family(config, family)
    graph, params, batch_stats = abstract(config, 5, platform=Platform(is_cpu=is_cpu))

    def total(params: Any, batch_stats: Any, image: Any) -> jax.Array:
        return nnx.merge(graph, params, batch_stats)(image).sum()

    image = jax.ShapeDtypeStruct((1, 224, 256, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(jax.grad(total))(params, batch_stats, image).jaxpr
    found = {"platform_index", "pallas_call"} & {e.primitive.name for e in equations(jaxpr)}
    assert bool(found) != is_cpu


@pytest.mark.parametrize(
    ("choice", "is_cpu", "expected"),
    [
        ("auto", True, {"_evaluated", "_applied", "_rows"}),
        ("auto", False, set()),
        ("reference", True, set()),  # may be exported to any backend
    ],
)
def test_on_cpus_blocks_and_layers_of_segman_are_not_inlined(mini, choice, is_cpu, expected):
    config = ModelConfig(kernels=choice)
    choose_family(config, "segman")
    graph, *variables = abstract(config, 5, platform=Platform(is_cpu=is_cpu))
    image = jax.ShapeDtypeStruct((1, 224, 256, 3), jnp.float32)
    network = jax.jit(lambda variables, image: nnx.merge(graph, *variables)(image))
    lowered = network.lower(variables, image)
    assert ("inlineable" in lowered.as_text()) == bool(expected)
    calls = re.findall(r" call\(.*to_apply=%(_[a-z]+)", lowered.compile().as_text())
    assert set(calls) == expected


@pytest.mark.parametrize(
    ("kind", "of_call"), [(LayerNorm, {"in_one_call": True}), (DepthwiseConv, {"residual": True})]
)
def test_a_layer_that_is_not_inlined_computes_the_same_with_its_gradients(kind, of_call):
    options = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    if kind is DepthwiseConv:
        options |= {"size": 3, "kernels": kernels.Kernels.AUTO, "platform": Platform(is_cpu=True)}
    graph, params = nnx.split(kind(8, **options))
    x = jnp.asarray(noise(2, 5, 6, 8))

    def found(apply: Any) -> Any:
        def total(params: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(apply(nnx.merge(graph, params), x) ** 3)

        return jax.jit(jax.value_and_grad(total, (0, 1)))(params, x)

    plain, not_inlined = (
        found(functools.partial(apply_layer, outline=outline, **of_call))
        for outline in (False, True)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), not_inlined, plain)


@pytest.mark.parametrize("outline", [False, True])
def test_a_matrix_is_split_into_blocks_of_rows(outline):
    matrix = noise(9, 3)
    blocks = split_rows(jnp.asarray(matrix), (2, 4, 2, 1), outline=outline)
    jax.tree.map(np.testing.assert_array_equal, blocks, np.split(matrix, [2, 6, 8]))


def test_blocks_of_one_size_share_a_kernel():
    def product(matrix: jax.Array) -> jax.Array:
        left, right = split_rows(matrix, (16, 16), outline=True)
        return left @ right

    compiled = jax.jit(product).lower(jnp.zeros((32, 16))).compile()
    slices = re.findall(r"ROOT (.* dynamic-slice\(.*\))", compiled.as_text())
    assert len(slices) == 2
    assert len({re.sub(r"[.\d]+", "", text) for text in slices}) == 1


def test_the_reference_has_one_program_for_all_sizes_and_platforms(mini):
    graph, *variables = abstract(segret(kernels="reference", rotary=True, ffn_conv=True), 5)
    leaves, tree = jax.tree.flatten(variables)
    b, h, w = jax.export.symbolic_shape("b, h, w")

    @jax.jit
    def network(leaves: list[Any], image: Any) -> jax.Array:
        return nnx.merge(graph, *jax.tree.unflatten(tree, leaves))(image)

    exported = jax.export.export(network, platforms=("cpu", "cuda", "tpu"))(
        leaves, jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32)
    )
    (out,) = exported.out_avals
    assert str(out.shape[0]) == "b"
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("new_size", [(5, 4), (9, 7), (3, 11), (1, 1)])
def test_resize_by_products_equals_resize_bilinear(new_size):
    x = jnp.asarray(noise(2, 5, 4, 3))
    expected = resize_bilinear(x, new_size)
    np.testing.assert_allclose(resize_by_products(x, new_size), expected, atol=4e-6)


def test_a_run_may_continue_with_other_kernels():
    assert rules(Config())["model.kernels"].may_change
