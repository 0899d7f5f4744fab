"""The format in which a train state is stored: Adam's moments as one array for each parameter.

In memory small parameters are packed (`packing`). The packing may change from version to
version; the stored format does not. `FORMAT` counts its changes:

    0  no checksums
    1  checksums are plain sums; moments are packed by parameter names
    2  checksums are weighted (`checksum`); moments are stored for each parameter
"""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from segret_jax.checkpoint.packing import LARGE, pack, small_or_large, unpack
from segret_jax.checkpoint.state import TrainState
from segret_jax.models.family import Path
from segret_jax.trees import leaves_by_path

FORMAT = 2
# Where formats 0 and 1, of SegRet alone, packed a leaf: the first pattern that its path contains.
# Frozen: SegRet's parameter groups may change.
_FORMAT_1 = {
    LARGE: r"(q|k|v|out|fc1|fc2|proj|head|conv|convs/\d+|linear|zero_conv|fuse|classify)/kernel$",
    "encoder_norms": r"^encoder/(.+/)?norm[s12]?/",
    "decoder_norms": r"/(zero|fuse)_norm/",
    "others": "",
}


def to_stored(state: TrainState) -> TrainState:
    """Return the state to store: its moments are trees like its parameters."""
    _, small = _divide(state.params)
    adam: Any = state.opt_state[0]
    unpack_small = jax.jit(unpack, out_shardings=state.step.sharding)  # they are replicated

    def unpacked(packed: dict[str, Any]) -> Any:
        leaves = leaves_by_path(unpack_small(packed | {LARGE: {}}, small))
        return unflatten_dict(leaves_by_path(packed[LARGE]) | leaves)

    return _with_moments(state, unpacked(adam.mu), unpacked(adam.nu))


def stored_like(like: TrainState, version: int) -> TrainState:
    """Return the shapes and the placement that a state like `like` has in a stored format.

    Args:
        like: The state in memory, or its shapes; every leaf has a sharding.
        version: The format's number.
    """
    if version >= 2:
        return _with_moments(like, like.params, like.params)
    shapes = jax.eval_shape(lambda params: pack(params, _vector_of_format_1), like.params)
    params, whole = leaves_by_path(like.params), like.step.sharding
    packed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)
    packed[LARGE] = unflatten_dict({path: params[path] for path in leaves_by_path(shapes[LARGE])})
    return _with_moments(like, packed, packed)


def from_stored(stored: TrainState, version: int) -> TrainState:
    """Undo `to_stored`, for a state of any format up to this one."""
    adam: Any = stored.opt_state[0]
    trees = [adam.mu, adam.nu]
    if version < 2:
        where = jax.tree.map(lambda leaf: leaf.sharding, stored.params)
        unpack_all = jax.jit(partial(unpack, vector_of=_vector_of_format_1), out_shardings=where)
        trees = [unpack_all(packed, stored.params) for packed in trees]
    pack_small = jax.jit(pack, out_shardings=stored.step.sharding)

    def packed(tree: Any) -> dict[str, Any]:
        large, small = _divide(tree)
        return pack_small(small) | {LARGE: large}

    return _with_moments(stored, *map(packed, trees))


def _with_moments(state: TrainState, mu: Any, nu: Any) -> TrainState:
    adam: Any = state.opt_state[0]
    return replace(state, opt_state=(adam._replace(mu=mu, nu=nu), *state.opt_state[1:]))


def _divide(tree: Any) -> tuple[Any, Any]:
    """Return the large leaves of a tree, and the small ones."""
    parts: dict[str, dict[Path, Any]] = {LARGE: {}, "small": {}}
    for path, leaf in leaves_by_path(tree).items():
        parts[small_or_large(path, leaf)][path] = leaf
    return unflatten_dict(parts[LARGE]), unflatten_dict(parts["small"])


def _vector_of_format_1(path: Path, leaf: Any) -> str:
    """Return into which vector formats 0 and 1 packed a leaf."""
    name = "/".join(map(str, path))
    return next(vector for vector, pattern in _FORMAT_1.items() if re.search(pattern, name))
