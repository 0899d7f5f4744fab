"""The sharding of arrays over the mesh of all devices.

The mesh has two axes. The batch is split over both. Large parameters, their gradients and moments
are split along `fsdp` (ZeRO 3; "fully sharded data parallel") and replicated along `data`; XLA
gathers each where it is used. No result depends on the mesh: means over the batch are over the
global batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segret_jax.parallel.mesh import AXES

MIN_CHANNELS = 8  # input and output channels from which on a kernel is large


def is_large(shape: Sequence[int]) -> bool:
    """Return whether a parameter of this shape is a large kernel, which `fsdp` splits.

    That is one whose last two axes are input and output channels: of a dense layer [i, o] or a
    full convolution [k, k, i, o]. Vectors (biases, norms, layer scales) and depthwise kernels
    [k, k, c] are too small to gain from it.
    """
    return len(shape) >= 2 and min(shape[-2:]) >= MIN_CHANNELS


def partition(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Return the partition of a leaf of the state, or of a tree of parameters.

    A large kernel is split along its last axis that `fsdp` divides: as a rule the outputs.
    """
    if fsdp > 1 and is_large(shape):
        for axis in reversed(range(len(shape))):
            if shape[axis] % fsdp == 0:
                return PartitionSpec(*[None] * axis, "fsdp")
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Return the sharding of each leaf of a tree of arrays, or of their shapes."""

    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, partition(leaf.shape, fsdp)), tree)


def shard_state(tree: Any, mesh: Mesh) -> Any:
    """Put a tree that every process holds in full onto the mesh, sharded by `shardings`."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree, shardings(tree, mesh))


def gather_replicated(tree: Any, mesh: Mesh) -> Any:
    """Gather a tree from the mesh: the full arrays on one device of this process."""
    if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        whole = NamedSharding(mesh, PartitionSpec())
        tree = jax.jit(lambda x: x, out_shardings=whole)(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def batch_sharding(mesh: Mesh, accumulate: int) -> NamedSharding:
    """Return the sharding of a batch [b, ...], or with accumulation [accumulate, b', ...]."""
    return NamedSharding(mesh, PartitionSpec(*[None] * (accumulate > 1), AXES))


def shard_batch(
    batch: dict[str, np.ndarray], mesh: Mesh, accumulate: int = 1
) -> dict[str, jax.Array]:
    """Put this process's share of a batch on its devices; leading axis as in `batch_sharding`."""
    sharding = batch_sharding(mesh, accumulate)

    def put(x: np.ndarray) -> jax.Array:
        parts = x.reshape(accumulate, -1, *x.shape[1:]) if accumulate > 1 else x
        return jax.make_array_from_process_local_data(sharding, parts)

    return {name: put(x) for name, x in batch.items()}
