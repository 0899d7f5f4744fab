"""Retention against double loops in float64; the blocked one against the plain one; rotation."""

import functools
import math
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segret_jax.models.retention import blocked as module
from segret_jax.models.retention import gpu as retention_gpu
from segret_jax.models.retention import tpu as retention_tpu
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.retention.decay import Decay, head_log_decay
from segret_jax.models.retention.formulas import decomposed_retention, rotate, whole_retention
from tests.conftest import slow

LOG_DECAY = (-0.7, -0.2, -0.01)  # three heads, near to far
BLOCKED = {
    whole_retention: functools.partial(blocked_retention, decomposed=False),
    decomposed_retention: functools.partial(blocked_retention, decomposed=True),
}
FORMS = list(BLOCKED)
ALL = [*FORMS, *BLOCKED.values()]
# 99 pixels of 3 heads. Whole: blocks of 7 queries, the last one of one query and six more that
# fill it up. Decomposed: 9 blocks of 3 rows of 11² scores; 8 of 4 columns of 9², and one left over.
SIZE, MAX_SCORES = (9, 11), {whole_retention: 7 * 99, decomposed_retention: 3 * 11**2}


def qkv(h: int, w: int, *, batch: int = 2, width: int = 4) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(h * 100 + w)
    shape = (3, batch, h, w, len(LOG_DECAY), width)
    return tuple(jnp.asarray(t) for t in rng.standard_normal(shape).astype(np.float32))


def attend(q: np.ndarray, keys: list, values: list, bias: list, decay: Decay) -> np.ndarray:
    """One query over a list of pixels: eq. 4 (post-softmax) or the released code."""
    scores = np.array([q @ key for key in keys])
    if decay is Decay.ADDITIVE:
        weights = np.exp(scores + bias) / np.exp(scores + bias).sum()
    else:
        weights = np.exp(scores) / np.exp(scores).sum() * np.exp(bias)
    return weights @ np.array(values)


def whole_by_loops(q: Any, k: Any, v: Any, decay: Decay) -> np.ndarray:
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))
    b, h, w, n, _ = q.shape
    pixels, out = list(np.ndindex(h, w)), np.zeros_like(q)
    for s, y, x, head in np.ndindex(b, h, w, n):
        bias = [LOG_DECAY[head] * (abs(y - y2) + abs(x - x2)) for y2, x2 in pixels]
        keys, values = ([t[s, y2, x2, head] for y2, x2 in pixels] for t in (k, v))
        out[s, y, x, head] = attend(q[s, y, x, head], keys, values, bias, decay)
    return out


def decomposed_by_loops(q: Any, k: Any, v: Any, decay: Decay) -> np.ndarray:
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))
    b, h, w, n, _ = q.shape
    rows, out = np.zeros_like(q), np.zeros_like(q)
    for s, y, x, head in np.ndindex(b, h, w, n):
        bias = [LOG_DECAY[head] * abs(x - x2) for x2 in range(w)]
        query, keys, values = q[s, y, x, head], list(k[s, y, :, head]), list(v[s, y, :, head])
        rows[s, y, x, head] = attend(query, keys, values, bias, decay)
    for s, y, x, head in np.ndindex(b, h, w, n):
        bias = [LOG_DECAY[head] * abs(y - y2) for y2 in range(h)]
        query, keys, values = q[s, y, x, head], list(k[s, :, x, head]), list(rows[s, :, x, head])
        out[s, y, x, head] = attend(query, keys, values, bias, decay)
    return out


@pytest.mark.parametrize("shape", [(5, 7), (7, 2), (1, 4)])
@pytest.mark.parametrize("decay", Decay)
@pytest.mark.parametrize(
    ("form", "oracle"),
    [
        (form, oracle)
        for plain, oracle in zip(FORMS, [whole_by_loops, decomposed_by_loops], strict=True)
        for form in (plain, BLOCKED[plain])
    ],
    ids=["whole", "whole blocked", "decomposed", "decomposed blocked"],
)
def test_equals_the_double_loop(form, oracle, decay, shape):
    q, k, v = qkv(*shape)
    expected = oracle(q, k, v, decay)
    np.testing.assert_allclose(form(q, k, v, LOG_DECAY, decay=decay), expected, atol=2e-6)


def value_and_grads(form: Any, *args: jax.Array, **settings: Any) -> list[jax.Array]:
    """The output and the gradients of its product with a fixed array."""

    @jax.jit
    def run(*args: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda *args: form(*args, LOG_DECAY, **settings), *args)
        return (out, *pull(jnp.sin(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype)))

    return list(run(*args))


@pytest.mark.parametrize("max_scores", [2**25, None, 1], ids=["at once", "blocks", "one query"])
@pytest.mark.parametrize("decay", Decay)
@pytest.mark.parametrize("form", FORMS)
def test_blocked_equals_plain_with_its_gradients_in_float64(form, decay, max_scores):
    with jax.enable_x64(True):
        args = [t.astype(jnp.float64) for t in qkv(*SIZE)]
        limit = max_scores or MAX_SCORES[form]
        found = value_and_grads(BLOCKED[form], *args, decay=decay, max_scores=limit)
        for blocked, plain in zip(found, value_and_grads(form, *args, decay=decay), strict=True):
            assert blocked.dtype == jnp.float64
            np.testing.assert_allclose(blocked, plain, rtol=0, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (13, 1), (2, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_blocked_equals_plain_at_the_edges(form, shape):
    found = value_and_grads(BLOCKED[form], *qkv(*shape), max_scores=25)
    for blocked, plain in zip(found, value_and_grads(form, *qkv(*shape)), strict=True):
        np.testing.assert_allclose(blocked, plain, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_bfloat16_are_near_those_of_float32(form):
    args = [t.astype(jnp.bfloat16) for t in qkv(*SIZE)]
    exact = value_and_grads(form, *(t.astype(jnp.float32) for t in args))
    found = value_and_grads(BLOCKED[form], *args, max_scores=MAX_SCORES[form])
    for blocked, plain in zip(found, exact, strict=True):
        assert blocked.dtype == jnp.bfloat16
        error = np.abs(blocked.astype(jnp.float32) - plain).max()
        assert error < 0.015 * np.abs(plain).max()  # bfloat16 has 8 bits


def padded(args: Any, shape: tuple[int, int]) -> list[jax.Array]:
    """Pad to `shape` with large numbers."""
    (_, h, w, *_), (height, width) = args[0].shape, shape
    pads = [(0, 0), (0, height - h), (0, width - w), (0, 0), (0, 0)]
    return [jnp.pad(t, pads, constant_values=9.0) for t in args]


def check_padding(form: Any, plain: Any, size: tuple[int, int], **settings: Any) -> None:
    """Compare outputs and gradients within the true size, which is an argument of the program."""
    (h, w), args = size, qkv(*size, width=settings.pop("width", 4))
    at = np.s_[:, :h, :w]

    @jax.jit
    def run(height: jax.Array, width: jax.Array, *args: jax.Array) -> tuple[jax.Array, ...]:
        of_padded = functools.partial(form, size=(height, width), **settings)
        out, pull = jax.vjp(lambda *args: of_padded(*args, LOG_DECAY)[at], *args)
        return out, *(t[at] for t in pull(jnp.sin(jnp.arange(out.size)).reshape(out.shape)))

    found = run(jnp.int32(h), jnp.int32(w), *padded(args, (h + 3, w + 5)))
    settings.pop("max_scores", None)
    for ours, theirs in zip(found, value_and_grads(plain, *args, **settings), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(np.abs(theirs).max(), 1))


@pytest.mark.parametrize("size", [(6, 8), (1, 1), *slow((1, 9), (9, 1))])
@pytest.mark.parametrize("decay", Decay)
@pytest.mark.parametrize("plain", FORMS)
def test_nothing_attends_to_padding(plain, decay, size):
    check_padding(plain, plain, size, decay=decay)
    check_padding(BLOCKED[plain], plain, size, decay=decay, max_scores=MAX_SCORES[plain])


@pytest.fixture
def retraced() -> Iterator[None]:
    """For a test that changes what is read while tracing."""
    module._by_blocks.clear_cache()
    yield
    module._by_blocks.clear_cache()


@pytest.fixture
def kernel(retraced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel for TPUs compute all, interpreted; blocks of few queries and images."""

    def choose(*args: Any, tpu: Any, **others: Any) -> Any:
        return tpu(*args)

    interpreted = functools.partial(retention_tpu.by_kernel, interpret=True)
    platforms = types.SimpleNamespace(**vars(lax) | {"platform_dependent": choose})
    monkeypatch.setattr(module, "lax", platforms)
    monkeypatch.setattr(retention_tpu, "by_kernel", interpreted)
    monkeypatch.setattr(retention_tpu, "LANES", 8)
    monkeypatch.setattr(retention_tpu, "fits", lambda queries, keys: True)  # float64, too
    monkeypatch.setattr(retention_tpu, "MAX_SCORES", 2 * 8 * 99)


@pytest.mark.parametrize("size", [SIZE, (1, 1), *slow((8, 2), (13, 1))])
@pytest.mark.parametrize("decay", Decay)
@pytest.mark.parametrize("form", FORMS)
def test_the_tpu_kernel_equals_plain_with_its_gradients_in_float64(form, decay, size, kernel):
    with jax.enable_x64(True):
        args = [t.astype(jnp.float64) for t in qkv(*size, batch=4)]
        found = value_and_grads(BLOCKED[form], *args, decay=decay)
        for ours, plain in zip(found, value_and_grads(form, *args, decay=decay), strict=True):
            np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("form", FORMS)
def test_in_the_tpu_kernel_nothing_attends_to_padding(form, kernel):
    check_padding(BLOCKED[form], form, SIZE)


@pytest.mark.parametrize("form", FORMS)
def test_the_tpu_kernel_in_bfloat16_is_near_float32(form, kernel):
    args = [t.astype(jnp.bfloat16) for t in qkv(*SIZE)]
    exact = value_and_grads(form, *(t.astype(jnp.float32) for t in args))
    for ours, plain in zip(value_and_grads(BLOCKED[form], *args), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(ours.astype(jnp.float32) - plain).max() < 0.015 * np.abs(plain).max()


def test_blocks_of_queries_add_up_their_keys_gradients_in_float32():
    args = [t.astype(jnp.bfloat16) for t in qkv(*SIZE)]

    def total(*args: jax.Array) -> jax.Array:
        out = BLOCKED[whole_retention](*args, LOG_DECAY, max_scores=7 * 99)
        return out.astype(jnp.float32).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*args).jaxpr
    loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    carried = [v.aval.dtype for e in loops for v in e.outvars[: e.params["num_carry"]]]
    assert carried == [jnp.float32] * 2  # of k and v


@pytest.mark.parametrize("form", FORMS)
def test_the_cache_bounds_blocks_on_cpu_alone(form, monkeypatch, retraced):
    expected = value_and_grads(form, *qkv(*SIZE))
    monkeypatch.setattr(module, "CACHED_SCORES", 2 * MAX_SCORES[form])  # of two images
    found = value_and_grads(BLOCKED[form], *qkv(*SIZE))
    for blocked, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(blocked, plain, atol=1e-5 * np.abs(plain).max())
    jaxpr = jax.make_jaxpr(lambda *args: BLOCKED[form](*args, LOG_DECAY))(*qkv(*SIZE)).jaxpr
    choices = [e.params for e in equations(jaxpr) if e.primitive.name == "cond"]
    assert choices
    for params in choices:
        for platforms, branch in zip(params["branches_platforms"], params["branches"], strict=True):
            assert ("scan" in str(branch)) == (platforms == ("cpu",))


def test_the_precision_asked_for_reaches_the_gradients():
    """They are traced after the context that sets it has ended."""

    def total(*args: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("high"):
            return BLOCKED[whole_retention](*args, LOG_DECAY).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*qkv(3, 4)).jaxpr
    products = [
        e.params["precision"] for e in equations(jaxpr) if e.primitive.name == "dot_general"
    ]
    assert len(products) == 7  # 2 forward, 5 backward
    assert {precision[0] for precision in products} == {lax.Precision.HIGH}


def test_large_scores_overflow_nothing():
    q, k, v = qkv(*SIZE)
    found = value_and_grads(BLOCKED[whole_retention], 200 * q, 200 * k, v, max_scores=700)
    assert all(np.isfinite(t).all() for t in found)


def equations(jaxpr: Any, platform: str | None = None) -> Iterator[Any]:
    """Every equation, those of inner jaxprs included but for kernels'.

    Of what depends on the platform only its way, or the one of all that are not named.
    """
    for equation in jaxpr.eqns:
        yield equation
        inner = list(equation.params.values())
        if (ways := equation.params.get("branches_platforms")) is not None:
            way = (platform,) if (platform,) in ways else None
            inner = [equation.params["branches"][ways.index(way)]]
        elif equation.primitive.name == "pallas_call":
            continue
        for value in jax.tree.leaves(inner, is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value), platform)


def size(equation: Any) -> int:
    return max((math.prod(var.aval.shape) for var in equation.outvars), default=0)


def is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_blocks_bound_every_intermediate(form, backward):
    q, k, v = qkv(*SIZE, batch=1, width=1)

    def largest(max_scores: int) -> int:
        def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return BLOCKED[form](q, k, v, LOG_DECAY, max_scores=max_scores).sum()

        f = jax.grad(total, (0, 1, 2)) if backward else total
        return max(map(size, equations(jax.make_jaxpr(f)(q, k, v).jaxpr)))

    bound = MAX_SCORES[form]
    assert largest(bound) <= bound
    assert largest(2**25) > 3 * bound  # what a walk that finds nothing would not see


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_on_a_tpu_scores_are_in_the_kernel_alone(form, backward):
    q, k, v = qkv(16, 16, batch=1, width=1)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return BLOCKED[form](q, k, v, LOG_DECAY).sum()

    f = jax.grad(total, (0, 1, 2)) if backward else total
    jaxpr = jax.make_jaxpr(f)(q, k, v).jaxpr
    ways = {way: list(equations(jaxpr, way)) for way in ("tpu", None)}
    assert max(map(size, ways["tpu"])) <= q.size
    assert max(map(size, ways[None])) >= 16 * q.size  # what a walk that finds nothing would not see
    kernels = [e for e in ways["tpu"] if e.primitive.name == "pallas_call"]
    assert len(kernels) == (1 + (form is decomposed_retention)) * (1 + backward)


def kernels_on_a_tpu(*args: jax.Array, precision: str = "default") -> list[Any]:
    def total(*args: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(precision):
            return BLOCKED[whole_retention](*args, LOG_DECAY).astype(jnp.float32).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*args).jaxpr
    return [e for e in equations(jaxpr, "tpu") if e.primitive.name == "pallas_call"]


def test_sequences_too_long_for_the_tpu_kernel_use_xla(monkeypatch, retraced):
    monkeypatch.setattr(retention_tpu, "MAX_KEYS", 6 * 5 * 7)
    assert len(kernels_on_a_tpu(*qkv(5, 7))) == 2
    assert len(kernels_on_a_tpu(*qkv(6, 7))) == 1  # the forward pass, with fewer arrays
    assert not kernels_on_a_tpu(*qkv(9, 11))


@pytest.mark.parametrize(
    ("asked", "dtype", "expected"),
    [
        ("high", "float32", lax.Precision.HIGHEST), ("highest", "float32", lax.Precision.HIGHEST),
        ("default", "float32", lax.Precision.DEFAULT), ("high", "bfloat16", lax.Precision.DEFAULT),
    ],
)  # fmt: skip
def test_the_tpu_kernel_uses_a_precision_it_supports(asked, dtype, expected):
    kernels = kernels_on_a_tpu(*(t.astype(dtype) for t in qkv(3, 4)), precision=asked)
    inner = [e for kernel in kernels for e in equations(kernel.params["jaxpr"])]
    products = [e.params["precision"] for e in inner if e.primitive.name == "dot_general"]
    assert len(products) == 7
    assert set(products) == {(expected, expected)}


def test_on_several_devices_each_runs_the_kernel_on_its_own_images(kernel):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    args = jax.device_put(qkv(*SIZE), images)

    def over_devices(*args: jax.Array, **settings: Any) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return BLOCKED[whole_retention](*args, **settings)

    found = value_and_grads(over_devices, *args)
    expected = value_and_grads(whole_retention, *qkv(*SIZE))
    for ours, plain in zip(found, expected, strict=True):
        assert ours.sharding.is_equivalent_to(images, ours.ndim)
        np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())
    jaxpr = jax.make_jaxpr(lambda *args: value_and_grads(over_devices, *args))(*args).jaxpr
    sharded = [e for e in equations(jaxpr) if e.primitive.name == "shard_map"]
    assert len(sharded) == 2


@pytest.fixture
def gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the kernels for GPUs compute all, interpreted."""

    def choose(*args: Any, cuda: Any, **others: Any) -> Any:
        return cuda(*args)

    def forget() -> None:
        module._on_gpu.clear_cache()

    platforms = types.SimpleNamespace(**vars(lax) | {"platform_dependent": choose})
    monkeypatch.setattr(module, "lax", platforms)
    for name in ("forward", "backward"):
        interpreted = functools.partial(getattr(retention_gpu, name), interpret=True)
        monkeypatch.setattr(retention_gpu, name, interpreted)
    forget()
    yield
    forget()


# One block for a line or several, the last one full or not.
@pytest.mark.parametrize("size", [SIZE, (1, 130), (1, 1), *slow((12, 16), (13, 1), (2, 64))])
@pytest.mark.parametrize("form", FORMS)
def test_the_gpu_kernels_equal_plain_with_their_gradients(form, size, gpu_kernels):
    args = qkv(*size, width=16)
    found = value_and_grads(BLOCKED[form], *args)
    for ours, plain in zip(found, value_and_grads(form, *args), strict=True):
        # Of one pixel the gradients of q and k are 0 but for rounding.
        np.testing.assert_allclose(ours, plain, rtol=0, atol=5e-6 * max(np.abs(plain).max(), 1))


@pytest.mark.parametrize("size", [SIZE, *slow((2, 130))])
@pytest.mark.parametrize("form", FORMS)
def test_in_the_gpu_kernels_nothing_attends_to_padding(form, size, gpu_kernels):
    check_padding(BLOCKED[form], form, size, width=16)


@pytest.mark.parametrize("size", [SIZE, (12, 16)])
def test_the_gpu_kernels_in_bfloat16_are_near_float32(size, gpu_kernels):
    args = [t.astype(jnp.bfloat16) for t in qkv(*size, width=16)]
    exact = value_and_grads(whole_retention, *(t.astype(jnp.float32) for t in args))
    for ours, plain in zip(value_and_grads(BLOCKED[whole_retention], *args), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(ours.astype(jnp.float32) - plain).max() < 0.015 * np.abs(plain).max()


def test_on_several_gpus_each_runs_the_kernels_on_its_own_images(gpu_kernels):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    args = qkv(3, 5, width=16)

    def over_devices(*args: jax.Array, **settings: Any) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return BLOCKED[decomposed_retention](*args, **settings)

    found = value_and_grads(over_devices, *jax.device_put(args, images))
    for ours, plain in zip(found, value_and_grads(decomposed_retention, *args), strict=True):
        assert ours.sharding.is_equivalent_to(images, ours.ndim)
        np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())
    jaxpr = jax.make_jaxpr(lambda *args: value_and_grads(over_devices, *args))(*args).jaxpr
    assert len([e for e in equations(jaxpr) if e.primitive.name == "shard_map"]) == 4


@pytest.mark.parametrize(
    ("asked", "dtype", "expected"),
    [
        ("high", "float32", lax.DotAlgorithmPreset.TF32_TF32_F32_X3),
        ("highest", "float32", lax.DotAlgorithmPreset.TF32_TF32_F32_X3),
        ("default", "float32", (lax.Precision.DEFAULT,) * 2),
        ("highest", "bfloat16", (lax.Precision.DEFAULT,) * 2),
    ],
)  # fmt: skip
def test_the_gpu_kernels_products_have_the_precision_asked_for(asked, dtype, expected):
    args = [t.astype(dtype) for t in qkv(12, 16, width=16)]

    def total(*args: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(asked):
            return BLOCKED[whole_retention](*args, LOG_DECAY).astype(jnp.float32).sum()

    with jax.default_matmul_precision(None):
        jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*args).jaxpr
    kernels = [e for e in equations(jaxpr, "cuda") if e.primitive.name == "pallas_call"]
    inner = [e for kernel in kernels for e in equations(kernel.params["jaxpr"])]
    products = [e.params["precision"] for e in inner if e.primitive.name == "dot_general"]
    assert len(products) == 9  # 2 forward, 4 for keys, 3 for queries
    assert set(products) == {expected}


def test_queries_and_values_of_different_dtypes_use_blocks():
    q, k, v = qkv(5, 7, width=16)
    v = v.astype(jnp.bfloat16)
    for ours in value_and_grads(BLOCKED[whole_retention], q, k, v):
        assert np.isfinite(ours.astype(jnp.float32)).all()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", None), ("bfloat16", None), ("float16", None), ("bfloat16", (jnp.int32(9),) * 2)],
)
@pytest.mark.parametrize("form", FORMS)
def test_the_gpu_kernels_lower_to_triton(form, dtype, size):
    args = [t.astype(dtype) for t in qkv(12, 16, width=16)]

    def total(*args: jax.Array, size: Any) -> jax.Array:
        return BLOCKED[form](*args, LOG_DECAY, size=size).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(*args, size=size)
    try:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # jax 0.11 asks for a GPU
        pytest.skip(str(error))
    assert text.count("triton") >= 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 4), ({"dtype": "float64"}, 0), ({"width": 4}, 0), ({"decay": Decay.POST_SOFTMAX}, 0)],
)
def test_gpus_use_the_kernels_for_the_released_models(settings, expected):
    decay = settings.get("decay", Decay.ADDITIVE)
    with jax.enable_x64(True):
        args = qkv(5, 7, width=settings.get("width", 16))
        args = [t.astype(settings.get("dtype", "float32")) for t in args]

        def total(*args: jax.Array) -> jax.Array:
            return BLOCKED[decomposed_retention](*args, LOG_DECAY, decay=decay).sum()

        jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*args).jaxpr
    kernels = [e for e in equations(jaxpr, "cuda") if e.primitive.name == "pallas_call"]
    assert len(kernels) == expected  # forward and backward, of rows and of columns


@pytest.mark.parametrize("form", ALL)
def test_scores_and_softmax_of_bfloat16_are_float32(form):
    q, k, v = (t.astype(jnp.bfloat16) for t in qkv(*SIZE, width=1))
    jaxpr = jax.make_jaxpr(lambda *args: form(*args, LOG_DECAY))(q, k, v).jaxpr
    scores = [
        e.outvars[0].aval
        for e in equations(jaxpr)
        if e.primitive.name == "exp" or (e.primitive.name == "dot_general" and size(e) > q.size)
    ]
    assert len(scores) == (2 if form in (whole_retention, BLOCKED[whole_retention]) else 4)
    assert {aval.dtype for aval in scores} == {jnp.dtype("float32")}
    out = form(q, k, v, LOG_DECAY)
    assert out.dtype == jnp.bfloat16
    exact = form(*(t.astype(jnp.float32) for t in (q, k, v)), LOG_DECAY)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


def reach(form: Any, y: int, x: int) -> list[np.ndarray]:
    """For q, k and v: at which pixels [h, w] the output at (y, x) depends on it."""
    args = qkv(5, 6, batch=1)
    grads = jax.jit(jax.grad(lambda *args: form(*args, LOG_DECAY)[0, y, x].sum(), (0, 1, 2)))(*args)
    return [np.abs(g[0]).sum((-1, -2)) > 0 for g in grads]


def test_decomposed_sees_queries_of_its_column_and_keys_and_values_everywhere():
    q, k, v = reach(BLOCKED[decomposed_retention], 2, 4)
    column = np.zeros((5, 6), bool)
    column[:, 4] = True
    np.testing.assert_array_equal(q, column)
    assert k.all()
    assert v.all()


def test_whole_sees_its_own_query_and_keys_and_values_everywhere():
    q, k, v = reach(BLOCKED[whole_retention], 2, 4)
    own = np.zeros((5, 6), bool)
    own[2, 4] = True
    np.testing.assert_array_equal(q, own)
    assert k.all()
    assert v.all()


@pytest.mark.parametrize("form", ALL)
def test_only_the_additive_decays_rows_sum_to_one(form):
    q, k, _ = qkv(5, 7)
    ones = jnp.ones_like(q)
    np.testing.assert_allclose(form(q, k, ones, LOG_DECAY), 1, atol=1e-6)
    decayed = form(q, k, ones, LOG_DECAY, decay=Decay.POST_SOFTMAX)
    assert (decayed < 0.999).all()
    assert decayed[..., 0, :].mean() < decayed[..., 2, :].mean()  # near heads lose more


def test_rotation_equals_the_loop():
    x = np.asarray(qkv(3, 5, width=8)[0])
    expected = np.zeros(x.shape)
    for s, row, column, head in np.ndindex(*x.shape[:4]):
        for j in range(4):
            phi = (row * 5 + column) * 10000 ** (-j / 3)
            a, b = x[s, row, column, head, 2 * j : 2 * j + 2]
            expected[s, row, column, head, 2 * j] = a * math.cos(phi) - b * math.sin(phi)
            expected[s, row, column, head, 2 * j + 1] = a * math.sin(phi) + b * math.cos(phi)
    np.testing.assert_allclose(rotate(jnp.asarray(x)), expected, atol=5e-6)
    wide = jnp.pad(jnp.asarray(x), ((0, 0), (0, 1), (0, 4), (0, 0), (0, 0)))
    found = rotate(wide, size=(jnp.int32(3), jnp.int32(5)))
    np.testing.assert_allclose(found[:, :3, :5], expected, atol=5e-6)


def test_log_decay_of_each_head():
    quarters = head_log_decay(4, initial=2.0, span=4.0)  # 2^-2, 2^-3, 2^-4, 2^-5
    np.testing.assert_allclose(quarters, np.log([3 / 4, 7 / 8, 15 / 16, 31 / 32]), rtol=1e-12)
    for n, span in [(5, 5.0), (16, 6.0)]:
        expected = [math.log(1 - 2 ** (-2 - span * i / n)) for i in range(n)]
        assert head_log_decay(n, initial=2.0, span=span) == pytest.approx(expected, rel=1e-9)
