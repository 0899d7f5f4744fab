"""Leaves of trees of arrays, by path or by name, in the order of JAX, which sorts keys."""

from typing import Any

import jax


def leaves_by_path(*trees: Any) -> dict[tuple[Any, ...], Any]:
    """Return {path: leaf} of nested dicts whose paths differ."""
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    return {tuple(entry.key for entry in path[1:]): leaf for path, leaf in leaves}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return {name: leaf} of any tree, with names such as encoder/stem/convs/0/kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
