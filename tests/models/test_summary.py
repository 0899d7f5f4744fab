"""The summary's numbers against the paper's and the released code's table, and against jaxprs."""

import functools
import math
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from segret_jax.cli import summary
from segret_jax.config import ModelConfig
from segret_jax.errors import InputError
from segret_jax.models import factory, flops
from segret_jax.models.flops import Cost, count_parameters, saved_bytes, stage_sizes
from segret_jax.models.segret import costs
from segret_jax.models.segret.costs import count
from tests.settings import segret

abstract = functools.cache(lambda variant: factory.abstract(ModelConfig(variant=variant), 150))


@pytest.fixture(autouse=True)
def _one_key(monkeypatch):
    """Draw every abstract weight with one key: Flax takes 8 s for large to trace the counting."""
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda stream: stream.key[...])


def total(config: ModelConfig, size: tuple[int, int]) -> Cost:
    return sum(count(config, 150, size).values(), Cost())


def giga(operations: int) -> float:
    return round(operations / 1e9, 2)


@pytest.mark.parametrize(
    ("variant", "paper", "layers", "retention", "layers_at_512"),
    [
        ("tiny", 72.28, 72.31, 84.29, 18.08),
        ("small", 117.1, 117.13, 31.81, 29.28),
        ("base", 229.66, 229.81, 59.34, 57.45),
        ("large", 478.54, 478.80, 81.79, 119.70),
    ],
)
def test_totals_are_those_of_mmcv_and_near_the_papers(
    variant, paper, layers, retention, layers_at_512
):
    config = ModelConfig(variant=variant)
    cost = total(config, (512, 2048))
    assert giga(cost.mult_adds + cost.elementwise) == layers
    assert 0 < layers - paper < 0.3  # the paper's counter skips some batch norms
    assert giga(cost.attention) == retention
    cost = total(config, (512, 512))
    assert giga(cost.mult_adds + cost.elementwise) == layers_at_512


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("tiny", 13_474_998), ("small", 25_983_862), ("base", 53_029_822), ("large", 95_795_150)],
)
def test_parameters_are_the_released_ones(variant, expected):
    assert sum(count_parameters(abstract(variant)[1]).values()) == expected


def test_parameters_of_each_part():
    c, k = 256, 150
    by_part = count_parameters(abstract("tiny")[1])
    linears, norm = sum((w + 1) * c for w in (64, 128, 256, 512)), 2 * c
    assert by_part["decoder"] == 2 * linears + 4 * norm + 4 * c * c + norm + (c + 1) * k
    stem = [(3, 32), (32, 32), (32, 64), (64, 64)]
    assert by_part["stem"] == sum(9 * i * o + o + 2 * o for i, o in stem)
    block = 26 * 512 + 10 * 512 + 2 * 2 * 512 + 4 * 513 * 512 + 513 * 1536 + 1537 * 512
    assert by_part["stage 4"] == 2 * block  # and no downsample
    assert list(by_part) == list(flops.PARTS)


def test_the_zero_branch_has_the_parameters_of_the_papers_ablation():
    _, params, _ = factory.abstract(segret(variant="small", zero_branch=False), 150)
    unused = 19_350 + 514_024  # conv_seg, ImageNet norm and classifier: in the paper's counts
    assert round((sum(count_parameters(params).values()) + unused) / 1e6, 2) == 26.27
    assert round((25_983_862 + unused) / 1e6, 2) == 26.52


def test_options_change_the_count():
    size, pixels = (64, 96), [384, 96, 24, 6]
    plain = total(ModelConfig(), size)
    without = total(segret(zero_branch=False), size)
    zero = sum(n * w * 256 for n, w in zip(pixels, (64, 128, 256, 512), strict=True))
    assert plain.mult_adds - without.mult_adds == zero
    assert plain.elementwise - without.elementwise == 4 * 256 * sum(
        pixels
    )  # bias 1, norm 2, ReLU 1
    hidden = sum(n * d * 3 * w for n, d, w in zip(pixels, (2, 2, 8, 2), (64, 128, 256, 512),
                                                  strict=True))  # fmt: skip
    with_conv = total(segret(ffn_conv=True), size)
    assert with_conv.mult_adds - plain.mult_adds == 9 * hidden
    assert with_conv.elementwise - plain.elementwise == hidden


def test_odd_sides_are_halved_upwards():
    assert stage_sizes((72, 104)) == [(18, 26), (9, 13), (5, 7), (3, 4)]
    assert stage_sizes((65, 97)) == [(17, 25), (9, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (ModelConfig(), (65, 97)),
        (segret(max_scores=2**14), (128, 160)),  # retention in blocks: loops
        (segret(variant="small", decoder_channels=64), (72, 104)),
        (segret(ffn_conv=True, rotary=True, zero_branch=False), (64, 96)),
    ],
    ids=["odd", "blocks", "small", "rmt_flavor"],
)
def test_formulas_agree_with_what_the_model_runs(config, size):
    graph, params, batch_stats = factory.abstract(config, 150)
    # For evaluation the decoder makes one product of two.
    jaxpr = jax.make_jaxpr(lambda *variables, x: nnx.merge(graph, *variables)(x, train=True))(
        params, batch_stats, x=jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    )
    cost = total(config, size)
    expected = cost.mult_adds + cost.attention - costs.fuse_saving(config, size)
    assert jaxpr_mult_adds(jaxpr.jaxpr) == expected


def jaxpr_mult_adds(jaxpr: Any) -> int:
    """Count multiply-adds of matrix products and convolutions, less those of bilinear resizes."""
    return sum(equation_mult_adds(equation) for equation in jaxpr.eqns)


def equation_mult_adds(equation: Any) -> int:
    name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars]
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        out_features = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
        return out * math.prod(shapes[1]) // out_features
    if equation.params.get("name") == "_resize":
        return 0
    if name == "cond":  # one branch for each kind of backend
        return max(jaxpr_mult_adds(branch.jaxpr) for branch in equation.params["branches"])
    inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
    times = equation.params["length"] if name == "scan" else 1
    return times * sum(jaxpr_mult_adds(j) for j in inner if hasattr(j, "eqns"))


def test_saved_bytes_of_a_small_function_equal_a_hand_count():
    def f(weight: jax.Array, x: jax.Array) -> jax.Array:
        y = jnp.sin(weight * x)  # saves x, and the cosine of weight * x
        return y * y * jnp.arange(5.0)  # saves y once; the constant does not count

    x = jax.ShapeDtypeStruct((5,), jnp.float32)
    assert saved_bytes(f, jax.ShapeDtypeStruct((), jnp.float32), x) == 3 * 5 * 4


def saved_of_tiny(batch: int, size: tuple[int, int]) -> int:
    graph, params, batch_stats = abstract("tiny")

    def forward(variables: Any, image: jax.Array) -> jax.Array:
        return nnx.merge(graph, *variables)(image, train=True)

    x = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    return saved_bytes(forward, (params, batch_stats), x)


def test_activations_grow_with_the_batch_and_are_no_parameters():
    one, three = saved_of_tiny(1, (64, 96)), saved_of_tiny(3, (64, 96))
    per_channel = 3 * one - three  # batch norm's statistics are as many for any batch
    assert 0 <= per_channel < 1e-2 * three


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segret_jax", "summary", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_prints_the_table():
    done = run("--model", "segret_tiny", "--size", "512x2048")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("total"))
    assert row.split()[1:] == ["13,474,998", "71.94G", "84.29G", "0.37G"]
    assert "Full count (all three): 156.60G" in done.stdout
    assert "The paper counts no attention: 72.31G here" in done.stdout


def test_command_counts_one_image_of_a_family_that_trains_on_two():
    done = run("--model", "segman_tiny", "--size", "512x512")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("total"))
    assert row.split()[1:] == ["6,397,260", "5.40G", "0.49G", "0.31G"]
    assert "Full count (all three): 6.20G" in done.stdout
    assert "Published: 6.2G at 512x512, 52.5G at 1024x2048" in done.stdout
    kept = float(done.stdout.split("Kept for the backward pass: ")[1].split()[0])
    assert kept == pytest.approx(0.377, rel=0.1)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--model", "segret_tinny"], ["'segret_tinny'", "did you mean 'segret_tiny'?"]),
        (["--size", "512"], ["'512'", "HEIGHTxWIDTH", "512x2048"]),
    ],
)
def test_mistakes_are_reported_in_one_line(args, parts):
    done = run(*args)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert all(part in done.stderr for part in parts)


@pytest.mark.parametrize("text", ["0x512", "512x", "-1x5", "512X512", "512x512x3", ""])
def test_malformed_sizes_are_rejected(text):
    with pytest.raises(InputError, match="HEIGHTxWIDTH"):
        summary.parse_size(text)


@pytest.mark.parametrize("option", ["--num_classes", "--batch"])
def test_counts_must_be_positive(option):
    with pytest.raises(InputError, match="from 1"):
        summary.main([option, "0"])
