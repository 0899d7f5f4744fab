"""Single operations of SegMAN against those of the released PyTorch code, in both forms."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.models import layers
from segret_jax.models.neighborhood.attention import fast_neighborhood_attention
from segret_jax.models.neighborhood.formulas import neighborhood_attention, window_starts
from segret_jax.models.segman.encoder import rotate
from segret_jax.models.segman.global_attention import bicubic_matrix
from segret_jax.models.segman.torch_format import from_torch
from segret_jax.models.selective_scan.formulas import (
    ScanWeights,
    selective_scan_2d,
    split_projections,
)
from segret_jax.models.selective_scan.scan import fast_selective_scan_2d
from tests import golden_weights as golden
from tests.parity.test_segman import assert_close

EXPECTED = golden.load("segman_layers")
SCAN = "backbone.layers.0.blocks.0.token_mixer.ssm."
SCAN_LEAVES = {  # in the order of `ScanWeights`, after the projection
    "project": "x_proj_weight", "dt_kernel": "dt_projs_weight", "dt_bias": "dt_projs_bias",
    "a_log": "A_logs", "skip": "Ds",
}  # fmt: skip
HEIGHT, WIDTH = 20, 17

scans = pytest.mark.parametrize("scan", [selective_scan_2d, fast_selective_scan_2d])


@pytest.fixture(scope="module")
def scanned() -> tuple[Any, Any, ScanWeights]:
    """The map, its projections and the weights."""
    shapes, x = golden.keys("segman_tiny"), golden.noise("ss2d/x", (2, 32, HEIGHT, WIDTH))
    kernel, *weights = (
        from_torch(golden.weight(SCAN + name, shapes[SCAN + name]), (leaf,))
        for leaf, name in SCAN_LEAVES.items()
    )
    x = x.transpose(0, 2, 3, 1)
    projections = (x @ kernel).reshape(2, HEIGHT, WIDTH, 4, -1)
    return jnp.asarray(x), jnp.asarray(projections), ScanWeights(*map(jnp.asarray, weights))


def sequence(x: Any, direction: int) -> np.ndarray:
    """Return a map [b, h, w, c] as the sequence [b, c, l] of a direction."""
    x = np.swapaxes(x, 1, 2) if direction % 2 else np.asarray(x)
    x = x.reshape(len(x), HEIGHT * WIDTH, -1)
    return np.swapaxes(x[:, ::-1] if direction > 1 else x, 1, 2)


def test_projections_of_the_scan(scanned):
    _, projections, weights = scanned
    dt, b, c = split_projections(projections)
    dt = np.einsum("bhwkr,krc->bhwkc", dt, weights.dt_kernel)
    for k in range(4):
        assert_close(sequence(dt[..., k, :], k), EXPECTED["ss2d/dts"][:, 32 * k : 32 * (k + 1)])
        assert_close(sequence(b[..., k, :], k), EXPECTED["ss2d/Bs"][:, k])
        assert_close(sequence(c[..., k, :], k), EXPECTED["ss2d/Cs"][:, k])


@scans
def test_scan(scanned, scan: Callable[..., Any]):
    assert_close(np.moveaxis(scan(*scanned), -1, 1), EXPECTED["ss2d/y"])


@pytest.mark.parametrize("direction", range(4))
@scans
def test_each_direction_of_the_scan(scanned, scan: Callable[..., Any], direction: int):
    x, projections, weights = scanned
    is_other = np.arange(4) != direction
    of_c = np.arange(4) == 3  # after dt, of rank 2, and B
    silent = jnp.where(is_other[:, None] & of_c, 0, projections)
    only = weights._replace(skip=jnp.where(is_other[:, None], 0, weights.skip))
    expected = EXPECTED["ss2d/ys"][:, 32 * direction : 32 * (direction + 1)]
    assert_close(sequence(scan(x, silent, only), direction), expected)


def attention_inputs() -> list[np.ndarray]:
    """Return q, k and v [b, h, w, n, d], and the bias."""
    qkv = (golden.noise(f"na/{name}", (2, 2, 13, 9, 8)) for name in "qkv")
    return [*(x.transpose(0, 2, 3, 1, 4) for x in qkv), golden.noise("na/rpb", (2, 13, 13))]


@pytest.mark.parametrize("form", [neighborhood_attention, fast_neighborhood_attention])
def test_neighborhood_attention(form: Callable[..., Any]):
    out = form(*map(jnp.asarray, attention_inputs()))
    assert_close(np.transpose(out, (0, 3, 1, 2, 4)), EXPECTED["na/out"])


@pytest.mark.parametrize("form", [neighborhood_attention, fast_neighborhood_attention])
def test_logits_of_neighborhood_attention(form: Callable[..., Any]):
    """With the pixels as values, the output is the softmax of the logits at each pixel."""
    q, k, _, bias = attention_inputs()
    pixels = np.eye(13 * 9, dtype=np.float32).reshape(1, 13, 9, 1, -1)
    q, k = (np.pad(x, [(0, 0)] * 4 + [(0, 117 - 8)]) for x in (q, k))  # as wide as the values
    out = form(*map(jnp.asarray, (q, k, np.broadcast_to(pixels, q.shape), bias)))
    out = np.asarray(out).reshape(2, 13, 9, 2, 13, 9)
    rows, columns = (np.asarray(window_starts(jnp.arange(n), n, 7)) for n in (13, 9))
    logits = EXPECTED["na/attn"].astype(np.float64)
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected = (expected / expected.sum(-1, keepdims=True)).reshape(2, 2, 13, 9, 7, 7)
    for i, j in np.ndindex(13, 9):
        ours = out[:, i, j, :, rows[i] : rows[i] + 7, columns[j] : columns[j] + 7]
        assert_close(ours, expected[:, :, i, j])


def test_bias_of_the_global_attention():
    name = "backbone.layers.6.blocks.0.token_mixer.rpb.1"
    matrix = bicubic_matrix(jnp.arange(63), 63)
    bias = golden.weight(name, (8, 49, 49))
    assert_close(jnp.einsum("lt,ntu,mu->nlm", matrix, bias, matrix), EXPECTED["rpb1/out"])


def test_rotation_by_position():
    """(1, 0) of each channel pair turns into (cos, sin)."""
    x = np.broadcast_to(np.arange(24, dtype=np.float32) % 2 == 0, (1, 7, 9, 1, 24))
    turned = np.asarray(rotate(jnp.asarray(x, jnp.float32)))[0, :, :, 0]
    assert_close(turned[..., 0::2], EXPECTED["rope/cos"][..., 0::2])
    assert_close(turned[..., 1::2], EXPECTED["rope/sin"][..., 1::2])
    # One pixel from the corner the angles are the frequencies.
    angle = np.arctan2(turned[1, 1, 1::2], turned[1, 1, 0::2])
    np.testing.assert_allclose(angle, np.tile(EXPECTED["rope/angle"][::2], 2), rtol=1e-5)


def test_layer_norm():
    """Of small variance, so that epsilon counts."""
    norm = layers.LayerNorm(16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = (golden.weight(f"ln.{n}", (16,)) for n in ("weight", "bias"))
    x = np.float32(0.01) * golden.noise("ln/x", (2, 16, 5, 4))
    assert_close(np.moveaxis(norm(jnp.moveaxis(x, 1, -1)), -1, 1), EXPECTED["ln/out"])
