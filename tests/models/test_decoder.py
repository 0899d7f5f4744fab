"""The decoder against eq. 16 and 17 written out, and what its zero branch must not do."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.models.layers import BatchNorm, SampleKeys
from segret_jax.models.segret.decoder import Decoder
from segret_jax.models.segret.model import SegRet
from tests.models.test_layers import bilinear, noise

WIDTHS, SIZES = (4, 6, 8, 10), ((9, 7), (5, 4), (3, 2), (2, 1))
MAPS = [jnp.asarray(noise(2, *size, c)) for size, c in zip(SIZES, WIDTHS, strict=True)]


def decoder(*, zero_branch: bool = True) -> Decoder:
    return Decoder(WIDTHS, 12, 5, zero_branch=zero_branch, dtype=jnp.float32, rngs=nnx.Rngs(0))


def run(
    model: nnx.Module, x: Any, *, train: bool = False, dropout: int | None = None
) -> np.ndarray:
    """Call the model under jit; it stays as it was."""
    graph, variables = nnx.split(model)
    key = jax.random.key(dropout or 0)
    return np.asarray(_run(graph, train, dropout is not None, variables, x, key))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    graph: nnx.GraphDef, train: bool, drop: bool, variables: Any, x: Any, key: jax.Array
) -> jax.Array:
    keys = SampleKeys(key, jnp.arange(2)) if drop else None
    return nnx.merge(graph, variables)(x, train=train, keys=keys)


def randomize(model: nnx.Module) -> None:
    """Give every leaf, zero branch and running statistics included, values of its own."""
    flat = nnx.to_flat_state(nnx.state(model))
    for i, (path, variable) in enumerate(flat):
        value, name = noise(*variable.shape, seed=i), path[-1]
        if name == "kernel":
            value /= np.sqrt(np.prod(value.shape[:-1]))
        elif name in ("bias", "mean"):
            value *= 0.3
        else:  # scale, var, gamma
            value = 0.5 + np.abs(value)
        variable[...] = jnp.asarray(value)
    nnx.update(model, nnx.from_flat_state(flat))


def linear(layer: nnx.Linear, x: np.ndarray) -> np.ndarray:
    y = x @ np.asarray(layer.kernel[...], np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias[...])


def normalized(norm: BatchNorm, x: np.ndarray) -> np.ndarray:
    scale, bias, mean, var = (
        np.asarray(v[...], np.float64) for v in (norm.scale, norm.bias, norm.mean, norm.var)
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def by_the_equations(model: Decoder, *, zero_branch: bool, relu: bool) -> np.ndarray:
    """Logits of MAPS with the concatenation built and one fuse over all of it."""
    projected = []
    for f, project in zip(MAPS, model.projections, strict=True):
        x = linear(project.linear, np.asarray(f))
        if zero_branch:
            x = x + normalized(project.zero_norm, linear(project.zero_conv, np.asarray(f)))
        projected.append(bilinear(np.maximum(x, 0) if relu else x, SIZES[0]))
    f1, f2, f3, f4 = projected
    x = linear(model.fuse, np.concatenate([f4, f3, f2, f1], axis=-1))
    return linear(model.classify, np.maximum(normalized(model.fuse_norm, x), 0))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_fuse_before_upsampling_equals_fuse_of_the_concatenation():
    model = decoder()
    randomize(model)
    expected = by_the_equations(model, zero_branch=True, relu=True)
    assert relative_error(run(model, MAPS), expected) < 1e-5
    without = by_the_equations(model, zero_branch=False, relu=True)
    assert relative_error(without, expected) > 0.01  # the branch counted


@pytest.mark.parametrize("train", [False, True])
def test_zero_branch_contributes_exactly_zero_at_initialization(train):
    model = decoder()
    for project, f in zip(model.projections, MAPS, strict=True):
        expected = jax.nn.relu(project.linear(f))
        np.testing.assert_array_equal(project(f, train=train), expected)
    if not train:
        expected = by_the_equations(model, zero_branch=False, relu=True)
        assert relative_error(run(model, MAPS), expected) < 1e-5


def test_zero_branch_learns_from_the_first_step():
    graph, params, stats = nnx.split(decoder(), nnx.Param, nnx.BatchStat)

    @jax.jit
    def gradient(params: Any, stats: Any) -> Any:
        def loss(params: Any, stats: Any) -> jax.Array:
            return jnp.sum(jnp.sin(3 * nnx.merge(graph, params, stats)(MAPS, train=True)))

        return jax.grad(loss)(params, nnx.to_pure_dict(stats))

    grads = gradient(nnx.to_pure_dict(params), stats)
    for i in range(4):
        assert np.abs(grads["projections"][i]["zero_conv"]["kernel"]).max() > 1e-4


def test_ablation_is_the_linear_projection_alone():
    model = decoder(zero_branch=False)
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))]
    assert not [path for path in paths if "zero" in path]
    full = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(decoder()))]
    assert set(full) - set(paths) == {path for path in full if "zero" in path}
    randomize(model)
    assert (model.projections[0](MAPS[0], train=False) < 0).any()  # no ReLU
    expected = by_the_equations(model, zero_branch=False, relu=False)
    assert relative_error(run(model, MAPS), expected) < 1e-5


def test_dropout_drops_channels_only_in_training():
    model = decoder()
    np.testing.assert_array_equal(run(model, MAPS, dropout=0), run(model, MAPS))
    plain = run(model, MAPS, train=True)
    dropped, again, other = (run(model, MAPS, train=True, dropout=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(dropped, again)
    assert (np.abs(dropped - plain).max((1, 2, 3)) > 1e-3).all()
    assert np.abs(dropped - other).max() > 1e-3


def test_batch_of_two_is_two_batches_of_one_in_evaluation(mini):
    model, image = SegRet(ModelConfig(), 7, rngs=nnx.Rngs(0)), jnp.asarray(noise(2, 32, 40, 3))
    randomize(model)
    together = run(model, image)
    one_by_one = np.concatenate([run(model, image[:1]), run(model, image[1:])])
    assert relative_error(together, one_by_one) < 1e-5
    assert relative_error(together[:1], one_by_one[1:]) > 1e-3  # they are not alike


@pytest.mark.parametrize("size", [(33, 47), (1, 5), (64, 36)])
def test_sides_become_a_quarter_rounded_up_twice(mini, size):
    model = nnx.eval_shape(lambda: SegRet(ModelConfig(), 7, rngs=nnx.Rngs(0)))
    logits = nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((1, *size, 3), "f4"))
    expected = [math.ceil(math.ceil(n / 2) / 2) for n in size]
    assert logits.shape == (1, *expected, 7)
