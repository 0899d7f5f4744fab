"""Checksums: against Python's integers, on one device and two, and what they do not miss."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segret_jax.checkpoint.checksum import BLOCK, mismatched_checksums, sums
from segret_jax.config import MeshConfig
from segret_jax.parallel.mesh import make_mesh


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def of(x: Any) -> int:
    return sums({"x": x})["x"]


def exchanged(x: np.ndarray, a: Any, b: Any) -> np.ndarray:
    found = x.copy()
    found[a], found[b] = x[b].copy(), x[a].copy()
    return found


def by_hand(x: np.ndarray) -> int:
    def mixed(word: int) -> int:
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    words = x.ravel().view(np.uint32).tolist()
    return sum(mixed(w) * (mixed(i) | 1) for i, w in enumerate(words)) % 2**32


@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (2, 3, 4, 5), (3, BLOCK // 3 + 2)])
def test_checksum_equals_the_formula(shape):
    assert of(noise(*shape)) == by_hand(noise(*shape))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (0, 34), (13, 14)])
def test_exchanged_words_change_the_checksum(a, b):
    x = noise(35)
    assert of(exchanged(x, a, b)) != of(x)
    assert not mismatched_checksums({"x": exchanged(x, a, b)}, sums({"x": x}, weighted=False),
                              weighted=False)  # fmt: skip


def test_exchanged_rows_and_shifted_words_change_the_checksum():
    x = noise(6, 5)
    assert of(exchanged(x, 1, 4)) != of(x)
    assert of(np.roll(x, 1)) != of(x)
    assert of(np.ascontiguousarray(x.T).reshape(6, 5)) != of(x)


def test_exchanged_numbers_of_opposite_sign_change_the_checksum():
    """Their words differ by 2^31: times the even difference of two odd weights, that is nothing."""
    x = np.array([1, -1, 0.5, -0.5, 0, -0.0], np.float32)
    for a in (0, 2, 4):
        assert of(exchanged(x, a, a + 1)) != of(x)


def test_any_flipped_bit_changes_the_checksum():
    x, expected = noise(4), of(noise(4))
    for bit in range(32):
        changed = x.copy()
        changed.view(np.uint32)[2] ^= np.uint32(1 << bit)
        assert of(changed) != expected


@pytest.mark.parametrize("weighted", [True, False])
def test_checksum_does_not_depend_on_sharding(weighted):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2))
    whole = {"a": noise(6, 5), "b": noise(3, 8), "c": noise(4, 2, 3), "d": noise(7), "e": noise()}
    specs = {"a": ("fsdp",), "b": (None, "fsdp"), "c": (None, None), "d": (), "e": ()}
    split = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs[name])))
        for name, x in whole.items()
    }
    assert not split["a"].is_fully_replicated
    assert sums(split, weighted=weighted) == sums(whole, weighted=weighted)


def test_checksums_of_a_device_s_arrays_compile_nothing():
    compiled: list[str] = []

    def listen(event: str, _: float, **_kwargs: Any) -> None:
        compiled.append(event)

    arrays = {str(n): jax.device_put(noise(n, 3)) for n in range(1, 4)}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = sums(arrays)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert found == {name: by_hand(np.asarray(x)) for name, x in arrays.items()}
