"""Small parameters packed into vectors, for the optimizer.

Two thirds of all leaves (biases, norms, depthwise kernels) hold 1.3% of the numbers: one by one,
each would cost the optimizer several kernels to compile and to launch. The packed form is for
memory only: a checkpoint holds one array for each parameter (`stored_state`).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict
from jax import Array

from segret_jax.models.family import Path
from segret_jax.parallel.sharding import is_large
from segret_jax.trees import leaves_by_path

LARGE = "large"  # the tree of the leaves that are not packed
VectorOf = Callable[[Path, Any], str]  # (path, leaf) -> the vector it is packed into, or LARGE


def small_or_large(path: Path, leaf: Any) -> str:
    """Return where a leaf goes, by its shape alone."""
    return LARGE if is_large(leaf.shape) else "small"


def pack(tree: Any, vector_of: VectorOf = small_or_large) -> dict[str, Any]:
    """Return a tree of parameters (or of gradients, ...) with its small leaves in vectors [n]."""
    large: dict[Path, Array] = {}
    small: dict[str, list[Array]] = {}
    for path, leaf in leaves_by_path(tree).items():
        vector = vector_of(path, leaf)
        if vector == LARGE:
            large[path] = leaf
        else:
            small.setdefault(vector, []).append(leaf.ravel())
    return {LARGE: unflatten_dict(large)} | {k: jnp.concatenate(v) for k, v in small.items()}


def unpack(packed: dict[str, Any], like: Any, vector_of: VectorOf = small_or_large) -> Any:
    """Undo `pack`; `like` is a tree with the shapes of the one that was packed."""
    large, tree = leaves_by_path(packed[LARGE]), {}
    start = dict.fromkeys(packed, 0)
    for path, leaf in leaves_by_path(like).items():
        vector = vector_of(path, leaf)
        if vector == LARGE:
            tree[path] = large[path]
        else:
            end = start[vector] + leaf.size
            tree[path] = packed[vector][start[vector] : end].reshape(leaf.shape)
            start[vector] = end
    return unflatten_dict(tree)


def moments(state: optax.OptState, params: Any) -> dict[str, Any]:
    """Return the moments in an optimizer's state as trees like `params`."""
    adam: Any = state[0]
    return {"mu": unpack(adam.mu, like=params), "nu": unpack(adam.nu, like=params)}
