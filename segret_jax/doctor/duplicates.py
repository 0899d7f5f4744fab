"""Images that are there twice: pixel by pixel, or nearly."""

from collections import defaultdict

import numpy as np

from segret_jax.doctor.examine import Examined

NEAR = 3  # bits in which the difference hashes of two images that look alike may differ
PLAIN = 8  # fewer bits set, or not set, are too few to tell an image by


def repeated(examined: list[Examined]) -> list[list[str]]:
    """Return the names of images that are equal pixel by pixel, group by group."""
    names = defaultdict(list)
    for one in examined:
        if one.digest:
            names[one.digest].append(one.name)
    return [group for group in names.values() if len(group) > 1]


def shared(
    some: list[Examined], others: list[Examined]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs (one of `some`, one of `others`) that are equal, and those that look alike.

    What is equal is not named again among those that look alike.
    """
    by_digest = {one.digest: one.name for one in others if one.digest}
    equal = [(one.name, by_digest[one.digest]) for one in some if one.digest in by_digest]
    rest = [one for one in some if one.digest not in by_digest]
    return equal, _look_alike(_telling(rest), _telling(others))


def _look_alike(some: list[Examined], others: list[Examined]) -> list[tuple[str, str]]:
    hashes, against = (np.array([e.dhash for e in group], np.uint64) for group in (some, others))
    found = []
    for start in range(0, len(hashes), 64):  # so many rows at a time: little memory
        differing = np.bitwise_count(hashes[start : start + 64, None] ^ against)
        for i, j in np.argwhere(differing <= NEAR):
            found.append((some[start + i].name, others[j].name))
    return found


def _telling(examined: list[Examined]) -> list[Examined]:
    """Leave out images so plain that any two of them have nearly the same hash."""
    return [e for e in examined if e.digest and PLAIN <= e.dhash.bit_count() <= 64 - PLAIN]
