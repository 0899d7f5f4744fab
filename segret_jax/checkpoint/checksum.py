"""Checksums of arrays, computed on their devices, modulo 2^32.

An array's checksum is the sum of its 32-bit words, each mixed and then weighted by an odd hash of
its index. Sums of integers do not depend on their order, so a checksum does not depend on how an
array is sharded. Any single changed word changes it: mixing is one to one, and so is
multiplication by an odd number. Exchanged words change it but for a chance of about 2^-30; without
the mixing, numbers that differ in the sign alone could be exchanged unseen.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

from segret_jax.trees import named_leaves


def sums(tree: Any, *, weighted: bool = True) -> dict[str, int]:
    """Return {path: checksum} of a tree of 32-bit arrays.

    Args:
        tree: Arrays of 4 bytes per element, on any devices.
        weighted: False for the plain sum of the words, as in checkpoints of format 1.
    """

    def one(x: Any) -> UInt32[Array, ""]:
        found = _checksum(x, weighted)
        # Block: many small programs that communicate, in flight at once, lock up on CPU.
        return found if getattr(x, "is_fully_replicated", True) else jax.block_until_ready(found)

    found = jax.device_get(jax.tree.map(one, tree))
    return {name: int(x) for name, x in named_leaves(found).items()}


def mismatched_checksums(tree: Any, expected: dict[str, int], *, weighted: bool) -> list[str]:
    """Return the paths of the arrays whose checksum is not the expected one."""
    found = sums(tree, weighted=weighted)
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


# One program for each shape: one for the whole tree would take long to compile.
@partial(jax.jit, static_argnums=1)
def _checksum(x: Array, weighted: bool) -> UInt32[Array, ""]:
    words = lax.bitcast_convert_type(x, jnp.uint32)
    if weighted:
        index, stride = jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            index += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
            stride *= x.shape[axis]
        words = _mixed(words) * (_mixed(index) | np.uint32(1))
    return lax.reduce(words, np.uint32(0), lax.add, tuple(range(words.ndim)))


def _mixed(words: Array) -> Array:
    """Return a one-to-one hash of 32-bit words: the finalizer of MurmurHash3."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
