"""What every model family promises to the rest of the package."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import Config, ModelConfig, choose_family, validate
from segret_jax.models.factory import ModelBundle, abstract, build
from segret_jax.models.families import FAMILIES, get_family
from segret_jax.models.flops import operations
from segret_jax.models.forward import forward, stage_maps
from segret_jax.models.layers import SampleKeys
from segret_jax.trees import named_leaves
from tests.models.test_layers import noise

NUM_CLASSES = 5
SIZE = (72, 104)  # no multiple of 16

every_family = pytest.mark.parametrize("name", FAMILIES)


def config_of(name: str, **options: Any) -> ModelConfig:
    config = ModelConfig(**options)
    choose_family(config, name)
    config.variant = next(iter(FAMILIES[name].variants))
    return config


def image_shapes(batch: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *SIZE, 3), jnp.float32)


def stride_of(bundle: ModelBundle) -> int:
    return nnx.merge(bundle.graph, *bundle.variables).stride


@every_family
def test_settings_are_plain_values_with_rules(name: str):
    config = Config()
    choose_family(config.model, name)
    config.model.variant = next(iter(FAMILIES[name].variants))
    for field in dataclasses.fields(FAMILIES[name].settings):
        assert "rules" in field.metadata, f"{field.name}: use segret_jax.settings.setting"
    validate(config)


@every_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_at_the_stride_rounded_up(name: str, dtype: str):
    bundle = abstract(config_of(name, dtype=dtype), NUM_CLASSES)
    logits = jax.eval_shape(lambda *x: forward(bundle.graph, *x), bundle.variables, image_shapes())
    side = [-(-n // stride_of(bundle)) for n in SIZE]
    assert (logits.shape, logits.dtype) == ((1, *side, NUM_CLASSES), jnp.float32)


@every_family
def test_training_changes_the_batch_statistics_alone(name: str):
    """And takes its randomness from `keys`, one for each sample."""
    bundle = abstract(config_of(name, drop_path=0.5), NUM_CLASSES)

    def train(variables: Any, image: jax.Array) -> Any:
        model = nnx.merge(bundle.graph, *variables)
        logits = model(image, train=True, keys=SampleKeys(jax.random.key(0), jnp.arange(2)))
        return logits, *map(nnx.to_pure_dict, nnx.split(model, nnx.Param, nnx.BatchStat)[1:])

    logits, params, batch_stats = jax.eval_shape(train, bundle.variables, image_shapes(2))
    assert logits.dtype == jnp.float32
    shapes = [jax.tree.map(jnp.shape, tree) for tree in ((params, batch_stats), bundle.variables)]
    assert shapes[0] == shapes[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(bundle.variables)} == {np.dtype("float32")}


@every_family
def test_the_settings_of_every_family_are_used(name: str):
    def program(**options: str) -> str:
        bundle = abstract(config_of(name, **options), NUM_CLASSES)
        return str(jax.make_jaxpr(lambda *x: forward(bundle.graph, *x))(*traced(bundle)))

    def traced(bundle: ModelBundle) -> tuple[Any, Any]:
        return bundle.variables, image_shapes()

    plain = program()
    assert "bf16" not in plain
    assert "bf16" in program(dtype="bfloat16"), "model.dtype is not used"
    assert program(matmul_precision="highest") != program(matmul_precision="default")


@every_family
def test_every_variant_is_built(name: str):
    for variant in FAMILIES[name].variants:
        config = config_of(name)
        config.variant = variant
        assert abstract(config, NUM_CLASSES).num_params > 0


@every_family
def test_images_of_a_batch_do_not_meet_in_evaluation(name: str):
    bundle = build(config_of(name), NUM_CLASSES, seed=0)
    first, second, other = jnp.asarray(noise(3, 64, 64, 3))
    run = jax.jit(lambda variables, *images: forward(bundle.graph, variables, jnp.stack(images)))
    logits = run(bundle.variables, first, second)
    beside_other = run(bundle.variables, first, other)
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 0
    assert float(jnp.abs(logits[1] - beside_other[1]).max()) > 0
    np.testing.assert_allclose(beside_other[0], logits[0], rtol=1e-4, atol=1e-5)


@every_family
def test_the_last_layer_is_what_depends_on_the_number_of_classes(name: str):
    leaves = [named_leaves(abstract(config_of(name), n).params) for n in (NUM_CLASSES, 7)]
    changed = {key for key, leaf in leaves[0].items() if leaf.shape != leaves[1][key].shape}
    last_layer = get_family(name).load().last_layer
    assert changed, "no parameter depends on the number of classes"
    hint = "call the last layer classify, or set Implementation.last_layer"
    assert changed == {key for key in leaves[0] if last_layer in f"/{key}"}, hint


@every_family
def test_every_parameter_is_in_a_group(name: str):
    family, params = get_family(name).load(), abstract(config_of(name), NUM_CLASSES).params
    paths = [
        tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    assert {family.parameter_group(path) for path in paths} == set(family.parameter_groups)


@every_family
def test_stages_are_those_that_the_certificate_names(name: str):
    bundle = abstract(config_of(name), NUM_CLASSES)
    maps = jax.eval_shape(lambda *x: stage_maps(bundle.graph, *x), bundle.variables, image_shapes())
    stages = get_family(name).load().stages
    assert set(maps) == set(stages)
    assert list(stages)[-1] == "logits"


@every_family
def test_operations_grow_with_the_pixels(name: str):
    small, large = (operations(config_of(name), NUM_CLASSES, (n, 256)) for n in (128, 512))
    assert large > 3.5 * small > 0


@every_family
def test_settings_have_other_names_than_those_of_every_family(name: str):
    shared, own = (
        {field.name for field in dataclasses.fields(group)}
        for group in (ModelConfig, FAMILIES[name].settings)
    )
    assert not shared & own, "saved configs and converted files tell settings apart by name"
