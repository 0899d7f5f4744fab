"""Checksums of arrays, modulo 2^32.

An array's checksum is the sum of its 32-bit words, each mixed and then weighted by an odd hash of
its index. Sums of integers do not depend on their order, so a checksum does not depend on how an
array is sharded. Any single changed word changes it: mixing is one to one, and so is
multiplication by an odd number. Exchanged words change it but for a chance of about 2^-30; without
the mixing, numbers that differ in the sign alone could be exchanged unseen.

They are computed on the host: on the devices each shape would compile a program.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt32

from segret_jax.parallel import processes
from segret_jax.trees import named_leaves

BLOCK = 1 << 14  # words computed at once: their temporaries stay in the processor's cache

Words = UInt32[np.ndarray, " n"]


def sums(tree: Any, *, weighted: bool = True) -> dict[str, int]:
    """Return {path: checksum} of a tree of 32-bit arrays.

    Where arrays are sharded over processes, all processes call this together.

    Args:
        tree: Arrays of 4 bytes per element, on any devices.
        weighted: False for the plain sum of the words, as in checkpoints of format 1.
    """
    leaves = named_leaves(tree)
    found = np.array([_checksum(x, weighted) for x in leaves.values()], np.uint32)
    if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves.values()):
        gathered = processes.gather(found.tobytes())
        found = np.sum([np.frombuffer(each, np.uint32) for each in gathered], 0, np.uint32)
    return dict(zip(leaves, found.tolist(), strict=True))


def mismatched_checksums(tree: Any, expected: dict[str, int], *, weighted: bool) -> list[str]:
    """Return the paths of the arrays whose checksum is not the expected one."""
    found = sums(tree, weighted=weighted)
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


def _checksum(x: Any, weighted: bool) -> int:
    """Return the sum over those words of `x` that this process counts."""
    total = 0
    for words, index in _parts(x):
        for start in range(0, words.size, BLOCK):
            block = np.s_[start : start + BLOCK]
            terms = words[block]
            if weighted:
                terms = _mixed(terms) * (_mixed(index[block]) | np.uint32(1))
            total += int(terms.sum(dtype=np.uint32))
    return total % 2**32


def _parts(x: Any) -> Iterator[tuple[Words, Words]]:
    """Yield the words of each shard of this process, and their indices in the whole array.

    Of the copies of a shard, on whatever devices, one counts.
    """
    shards = [(x, (slice(None),) * x.ndim)]
    if isinstance(x, jax.Array):
        shards = [(s.data, s.index) for s in x.addressable_shards if s.replica_id == 0]
    for data, slices in shards:
        index = np.zeros(1, np.uint32)
        for part, size in zip(slices, x.shape, strict=True):
            span = range(size)[part]
            index = index[..., None] * np.uint32(size)
            index = index + np.arange(span.start, span.stop, dtype=np.uint32)
        yield np.asarray(data, order="C").ravel().view(np.uint32), index.ravel()


def _mixed(words: Words) -> Words:
    """Return a one-to-one hash of 32-bit words: the finalizer of MurmurHash3."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
