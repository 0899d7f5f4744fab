"""SHA-256 hashes of values, of weights and of code."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segret_jax.trees import named_leaves

PACKAGE = Path(__file__).parent


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value's JSON."""
    return parts_digest([json.dumps(value, sort_keys=True).encode()])


def weights_digest(variables: Any) -> str:
    """Return the SHA-256 over path, shape, dtype and bytes of each array, sorted by path."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(variables).items()}
    return parts_digest(
        part
        for path, leaf in sorted(leaves.items())
        for part in (f"{path} {leaf.shape} {leaf.dtype}".encode(), leaf.tobytes())
    )


def code_digest(package: Path) -> str:
    """Return the SHA-256 over the paths and contents of a package's Python files."""
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    return parts_digest(
        part for path, file in sorted(files.items()) for part in (path.encode(), file.read_bytes())
    )


def parts_digest(parts: Iterable[bytes]) -> str:
    """Return a SHA-256 over the parts and their limits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())  # so that no byte can move to the next part
    return total.hexdigest()
