"""The formula behind the goldens: weights and inputs of the original, from their names.

`tests/goldens/README.md` states it. Layouts there are PyTorch's; here they become ours.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segret_jax.models.segret.torch_format import from_torch
from segret_jax.models.segret.torch_format import key as torch_key

GOLDENS = Path(__file__).parent / "goldens"


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = zlib.crc32(name.encode())
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that the goldens were computed with, in PyTorch's layout."""
    v = noise(name, shape)
    if name.endswith("running_var"):
        return 0.5 + np.abs(v)
    if name.endswith(("gamma_1", "gamma_2")):
        return 0.5 + 0.05 * v
    if name.endswith(("bias", "running_mean")):
        return 0.1 * v
    if len(shape) == 1:
        return 1 + 0.1 * v
    damped = any(part in name for part in ("pos.conv", "lepe.conv", "out_proj", "fc2"))
    return v * np.float32((0.25 if damped else 1.0) / np.sqrt(np.prod(shape[1:])))


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """{PyTorch name: shape} of a released model."""
    return {k: tuple(v) for k, v in json.loads((GOLDENS / f"{name}_keys.json").read_text()).items()}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz") as data:
        return dict(data)


def filled(tree: Any, name: str = "segret_tiny") -> Any:
    """The golden weights in the structure of abstract parameters or statistics."""

    shapes, prefix = keys(name), name.startswith("segret")

    def leaf(path: tuple, like: jax.ShapeDtypeStruct) -> jax.Array:
        path = tuple(entry.key for entry in path)
        key = torch_key(path, prefix=prefix)
        value = from_torch(weight(key, shapes[key]), path)
        assert value.shape == like.shape, (path, value.shape, like.shape)
        return jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def relative_error(actual: Any, expected: np.ndarray) -> float:
    """Largest difference over the RMS of what is expected."""
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(
        np.abs(actual - expected).max() / np.sqrt(np.mean(np.square(expected, dtype=float)))
    )


def tensors(name: str) -> dict[str, np.ndarray]:
    """Return a PyTorch model's tensors by name, but those that the model computes itself."""
    computed = ("Relpos", "num_batches_tracked")
    shapes = {k: s for k, s in keys(name).items() if not any(c in k for c in computed)}
    return {key: weight(key, shape) for key, shape in shapes.items()}
