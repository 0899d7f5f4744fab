"""Leaves of trees of arrays, by names such as encoder/stem/convs/0/kernel."""

from typing import Any

import jax


def leaf_name(path: Any) -> str:
    """Return the name of a leaf from its path, as JAX gives it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return {name: leaf}."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
