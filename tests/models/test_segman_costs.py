"""SegMAN's counts against the specification's, the published figures and the model's jaxpr."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from segret_jax.config import ModelConfig, choose_family
from segret_jax.models import factory, flops, layers
from segret_jax.models.flops import Cost
from segret_jax.models.segman import costs
from segret_jax.models.segman.global_attention import TOKENS
from segret_jax.models.segman.variants import VARIANTS
from tests.models.test_summary import jaxpr_mult_adds

CITYSCAPES = (1024, 2048)


def segman(variant: str, **options: int) -> ModelConfig:
    config = ModelConfig(variant=variant)
    choose_family(config, "segman")
    for name, value in options.items():
        setattr(config.settings, name, value)
    return config


@functools.cache
def model(variant: str) -> factory.ModelBundle:
    return factory.abstract(segman(variant), 150)


@pytest.fixture(autouse=True)
def _one_key(monkeypatch):
    """Draw every abstract weight with one key: Flax takes seconds to trace the counting."""
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda stream: stream.key[...])


def total(config: ModelConfig, num_classes: int, size: tuple[int, int]) -> Cost:
    return sum(costs.count(config, num_classes, size).values(), Cost())


def giga(cost: Cost) -> float:
    return (cost.mult_adds + cost.attention + cost.elementwise) / 1e9


@pytest.mark.parametrize(
    ("variant", "specified", "cityscapes", "channels"),
    [("tiny", 6.2, 51.0, 0), ("small", 25.3, 219.3, 152), ("base", 58.0, 480.1, 0),
     ("large", 97.4, 797, 0)],
)  # fmt: skip
def test_totals_are_the_specifications(variant, specified, cityscapes, channels):
    config = segman(variant)
    digits = 0 if cityscapes == 797 else 1
    assert round(giga(total(config, 150, (512, 512))), 1) == specified
    of_cityscapes = total(segman(variant, decoder_channels=channels), 19, CITYSCAPES)
    assert round(giga(of_cityscapes), digits) == cityscapes


def test_totals_of_the_other_decoders_of_cityscapes():
    assert round(giga(total(segman("tiny"), 150, CITYSCAPES)), 1) == 52.7
    assert round(giga(total(segman("small"), 19, CITYSCAPES)), 1) == 216.8


@pytest.mark.parametrize(
    ("variant", "encoder"), [("tiny", 0.64), ("small", 4.0), ("base", 9.9), ("large", 16.8)]
)
def test_encoders_at_the_size_of_the_classifier(variant, encoder):
    parts = costs.count(segman(variant), 1000, (224, 224))
    found = giga(sum((parts[part] for part in flops.PARTS[:-1]), Cost()))
    assert found == pytest.approx(encoder, abs=0.005 if variant == "tiny" else 0.05)


@pytest.mark.parametrize("variant", costs.PUBLISHED)
def test_published_figures_are_near(variant):
    small, large = costs.PUBLISHED[variant]
    assert giga(total(segman(variant), 150, (512, 512))) == pytest.approx(small, rel=0.005)
    # The count of large is 4% above the published figure; why is not known.
    assert giga(total(segman(variant), 19, CITYSCAPES)) == pytest.approx(large, rel=0.04)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("tiny", 6_397_260), ("small", 29_424_636), ("base", 51_802_820), ("large", 92_335_734)],
)
def test_parameters_are_the_released_ones(variant, expected):
    assert sum(costs.count_parameters(model(variant).params).values()) == expected


@pytest.mark.parametrize(
    ("config", "size"),
    [(segman("tiny"), (224, 256)), (segman("small", decoder_channels=152), (256, 224))],
    ids=["tiny", "small"],
)
def test_formulas_agree_with_what_the_model_runs(config, size, monkeypatch):
    resize = layers.resize_bilinear
    config.kernels = "reference"  # no tiles, whose products are more than the windows' own
    monkeypatch.setattr(layers, "resize_by_products", lambda x, size, **_: resize(x, size))
    graph, *variables = factory.abstract(config, 19)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda *variables, x: nnx.merge(graph, *variables)(x))(
        *variables, x=image
    )
    cost = total(config, 19, size)
    expected = cost.mult_adds + cost.attention
    # The bias of the global attention is in the products Q Kᵀ.
    shape, pixels = VARIANTS[config.variant], costs.stage_pixels(size)[3]
    expected += shape.depths[3] * shape.heads[3] * TOKENS * pixels * (TOKENS + pixels)
    expected -= costs.decoder_saving(config, size)
    assert jaxpr_mult_adds(jaxpr.jaxpr) == expected
