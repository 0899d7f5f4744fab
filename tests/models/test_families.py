"""What every model family promises to the rest of the package."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import (
    Config,
    EvalConfig,
    ModelConfig,
    TrainConfig,
    choose_family,
    validate,
)
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.factory import ModelBundle, abstract, build
from segret_jax.models.families import FAMILIES, get_family
from segret_jax.models.flops import operations, saved_bytes
from segret_jax.models.forward import forward, stage_maps, stride_of
from segret_jax.models.layers import SampleKeys
from segret_jax.trees import leaves_by_path, named_leaves
from tests.models.test_layers import noise

NUM_CLASSES = 5
SIZE = (72, 104)  # no multiple of 16, where the family admits that

every_family = pytest.mark.parametrize("name", FAMILIES)


def config_of(name: str, **options: Any) -> ModelConfig:
    config = ModelConfig(**options)
    choose_family(config, name)
    config.variant = next(iter(FAMILIES[name].variants))
    return config


def size_of(name: str) -> list[int]:
    return [FAMILIES[name].admissible(side) for side in SIZE]


def image_shapes(name: str, batch: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *size_of(name), 3), jnp.float32)


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
    image = image_shapes(name)
    logits = jax.eval_shape(lambda *x: forward(bundle.graph, *x), bundle.variables, image)
    side = [-(-n // stride_of(bundle)) for n in size_of(name)]
    assert logits.shape == (1, *side, NUM_CLASSES), "the attribute `stride` gives other sizes"
    assert logits.dtype == jnp.float32, "logits are float32 whatever model.dtype is"


@every_family
def test_training_changes_the_batch_statistics_alone(name: str):
    """And takes its randomness from `keys`, one for each sample."""
    bundle = abstract(config_of(name, drop_path=0.5), NUM_CLASSES)

    def train(variables: Any, image: jax.Array) -> Any:
        model = nnx.merge(bundle.graph, *variables)
        logits = model(image, train=True, keys=SampleKeys(jax.random.key(0), jnp.arange(2)))
        return logits, *map(nnx.to_pure_dict, nnx.split(model, nnx.Param, nnx.BatchStat)[1:])

    logits, params, batch_stats = jax.eval_shape(train, bundle.variables, image_shapes(name, 2))
    assert logits.dtype == jnp.float32
    shapes = [jax.tree.map(jnp.shape, tree) for tree in ((params, batch_stats), bundle.variables)]
    assert shapes[0] == shapes[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(bundle.variables)} == {np.dtype("float32")}


@every_family
@pytest.mark.slow
@pytest.mark.usefixtures("mini")
def test_recomputed_blocks_keep_less_for_the_backward_pass(name: str):
    def kept(remat: tuple[int, ...]) -> int:
        bundle = abstract(config_of(name, remat=remat), NUM_CLASSES)

        def train(variables: Any, image: jax.Array) -> jax.Array:
            return nnx.merge(bundle.graph, *variables)(image, train=True)

        return saved_bytes(train, bundle.variables, image_shapes(name, 2))

    every_stage = tuple(range(1, FAMILIES[name].num_remat_stages + 1))
    assert kept(every_stage) < kept((1,)) < kept(())


@every_family
@pytest.mark.slow
@pytest.mark.usefixtures("mini")
def test_recomputed_blocks_train_the_same(name: str):
    """Gradients and batch statistics, also of blocks that have a batch norm."""
    image = jnp.asarray(noise(2, *size_of(name), 3))

    def train(remat: tuple[int, ...]) -> Any:
        bundle = build(config_of(name, drop_path=0.5, remat=remat), NUM_CLASSES, seed=0)

        def loss(params: Any, batch_stats: Any) -> Any:
            model = nnx.merge(bundle.graph, params, batch_stats)
            logits = model(image, train=True, keys=SampleKeys(jax.random.key(0), jnp.arange(2)))
            return jnp.mean(logits**2), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(*bundle.variables)

    stages = tuple(range(1, FAMILIES[name].num_remat_stages + 1))
    for recomputed, kept in zip(*map(jax.tree.leaves, (train(stages), train(()))), strict=True):
        np.testing.assert_allclose(recomputed, kept, rtol=1e-3, atol=1e-4)


@every_family
def test_the_settings_of_every_family_are_used(name: str):
    def program(**options: str) -> str:
        bundle = abstract(config_of(name, **options), NUM_CLASSES)
        return str(jax.make_jaxpr(lambda *x: forward(bundle.graph, *x))(*traced(bundle)))

    def traced(bundle: ModelBundle) -> tuple[Any, Any]:
        return bundle.variables, image_shapes(name)

    plain = program()
    assert "bf16" not in plain
    assert "bf16" in program(dtype="bfloat16"), "model.dtype is not used"
    is_used = program(matmul_precision="highest") != program(matmul_precision="default")
    assert is_used, "model.matmul_precision is not used: see jax.default_matmul_precision"


@every_family
def test_every_variant_is_built(name: str):
    for variant in FAMILIES[name].variants:
        config = config_of(name)
        config.variant = variant
        assert abstract(config, NUM_CLASSES).num_params > 0
    assert "tiny" in FAMILIES[name].variants, "the default of model.variant"


@every_family
def test_images_of_a_batch_do_not_meet_in_evaluation(name: str):
    bundle = build(config_of(name), NUM_CLASSES, seed=0)
    side = FAMILIES[name].admissible(64)
    first, second, other = jnp.asarray(noise(3, side, side, 3))
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
    groups = {family.parameter_group(path) for path in leaves_by_path(params)}
    assert groups == set(family.parameter_groups)


@every_family
def test_stages_are_those_that_the_certificate_names(name: str):
    bundle = abstract(config_of(name), NUM_CLASSES)
    image = image_shapes(name)
    maps = jax.eval_shape(lambda *x: stage_maps(bundle.graph, *x), bundle.variables, image)
    stages = get_family(name).load().stages
    assert set(maps) == set(stages)
    assert list(stages)[-1] == "logits"


@every_family
def test_operations_grow_with_the_pixels(name: str):
    height, width = map(FAMILIES[name].admissible, (128, 256))
    sizes = (height, width), (4 * height, width)
    small, large = (operations(config_of(name), NUM_CLASSES, size) for size in sizes)
    assert large > 3.5 * small > 0


@every_family
def test_settings_have_other_names_than_those_of_every_family(name: str):
    shared, own = (
        {field.name for field in dataclasses.fields(group)}
        for group in (ModelConfig, FAMILIES[name].settings)
    )
    assert not shared & own, "saved configs and converted files tell settings apart by name"


@pytest.fixture
def choosy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that admits multiples of 32 from 193 on, and no single image in training."""
    family = dataclasses.replace(FAMILIES["segret"], multiple_of=32, min_side=193, min_batch=2)
    monkeypatch.setitem(FAMILIES, "segret", family)


def test_admissible_sides_are_rounded_up(choosy):
    admissible = FAMILIES["segret"].admissible
    assert [admissible(n) for n in (1, 193, 224, 225, 512)] == [224, 224, 224, 256, 512]


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("data", "crop", (200, 512), "data.crop is (200, 512), but the model takes multiples of 32 "
         "from 224 on: give (224, 512)"),
        ("data", "crop", (192, 250), "give (224, 256)"),
        ("eval", "window", (384, 100), "eval.window is (384, 100)"),
        ("eval", "multiple_of", 1, "eval.multiple_of is 1: give a multiple of 32"),
        ("eval", "multiple_of", 48, "eval.multiple_of is 48: give a multiple of 32"),
    ],
)  # fmt: skip
def test_settings_give_inputs_of_admissible_sizes(choosy, group, key, value, message):
    config = Config()
    config.eval.stride = (64, 64)
    validate(config)
    setattr(getattr(config, group), key, value)
    with pytest.raises(InputError, match=re.escape(message)):
        validate(config)


class Network(nnx.Module):
    """Refuses inputs that its family does not admit."""

    stride = 1

    def __call__(self, image: jax.Array) -> jax.Array:
        FAMILIES["segret"].check_size("the input", image.shape[1:3])
        return image


@pytest.mark.parametrize(
    "options",
    [{}, {"scales": (0.5,)}, {"mode": "slide", "window": (256, 512)}, {"resize_target": (40, 20)}],
)
@pytest.mark.parametrize("size", [(160, 10), (10, 160)])
def test_prediction_gives_a_network_inputs_that_it_admits(choosy, options, size):
    """Images that are far longer than wide would give others."""
    config = Config(eval=EvalConfig(**{"stride": (256, 256)} | options))
    validate(config)
    bundle = ModelBundle(nnx.graphdef(Network()), {}, {})
    red = np.zeros((*size, 3), np.uint8)
    red[..., 0] = 255
    predictor = Predictor.from_config(bundle, config)
    np.testing.assert_array_equal(predictor.label_map(red), np.zeros(size))
    with pytest.raises(InputError, match=r"^the input is .*, but the model takes multiples of 32"):
        Predictor(bundle, config.eval).label_map(red)


@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (2, 2), (6, 6)])
def test_a_batch_has_the_images_that_the_family_needs(choosy, batch, parts):
    config = Config(train=TrainConfig(batch_size=2 * parts, accumulate=parts))
    validate(config)
    config.train.batch_size = batch
    found = f"train.batch_size is {batch} and train.accumulate is {parts}, but the model trains on "
    remedy = f"2 images or more at once: give train.batch_size={2 * parts} or more"
    with pytest.raises(InputError, match=re.escape(found + remedy)) as refusal:
        validate(config)
    assert ("a smaller train.accumulate" in str(refusal.value)) == (parts > 1)


def test_a_batch_size_left_open_is_not_refused(choosy):
    validate(Config(train=TrainConfig(batch_size=0, minutes=1.0)))


def test_segret_admits_every_size():
    config = Config()
    config.data.crop, config.eval.window, config.eval.stride = (33, 1), (7, 9), (7, 9)
    config.eval.multiple_of = 1
    validate(config)
