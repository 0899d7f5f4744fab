"""Checksums of arrays, made where they lie: the sum of their 32-bit words, modulo 2^32.

Integer sums do not depend on their order, so neither does a checksum on how an array is split. Any
single changed word changes it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32


def sums(tree: Any) -> dict[str, int]:
    """Return {path: checksum} of a tree of 32-bit arrays."""
    found = jax.device_get(_sums(tree))
    return {_name(path): int(x) for path, x in jax.tree_util.tree_leaves_with_path(found)}


def differing_sums(tree: Any, expected: dict[str, int]) -> list[str]:
    """Return the paths of the arrays whose checksum is not the expected one."""
    found = sums(tree)
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


@jax.jit
def _sums(tree: Any) -> Any:
    def words(x: Array) -> UInt32[Array, ""]:
        return lax.reduce(lax.bitcast_convert_type(x, jnp.uint32), np.uint32(0), lax.add,
                          tuple(range(x.ndim)))  # fmt: skip

    return jax.tree.map(words, tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
