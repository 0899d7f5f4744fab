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

from segret_jax.models.families import get_family
from segret_jax.models.family import TorchFormat

GOLDENS = Path(__file__).parent / "goldens"
COMPUTED = ("Relpos", "rope.angle", "num_batches_tracked")  # what the model computes itself
GAINS = {  # of kernels whose name has this part
    "pos.conv": 0.25, "lepe.conv": 0.25, "out_proj": 0.25, "fc2": 0.25,
    ".cpe": 0.25, ".token_mixer.proj.": 0.25, ".mlp.dwconv.": 0.25, ".qkv.": 2.0,
}  # fmt: skip


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = zlib.crc32(name.encode())
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that the goldens were computed with, in PyTorch's layout."""
    v = noise(name, shape)
    if name.endswith("running_var"):
        return 0.5 + np.abs(v)
    if name.endswith(("gamma_1", "gamma_2", "layer_scale1.weight", "layer_scale2.weight")):
        return 0.5 + 0.05 * v
    if name.endswith("dt_projs_bias"):
        return -3 + 0.3 * v
    if name.endswith(("rpb.0", "rpb.1")):
        return v
    if name.endswith(("bias", "running_mean", "A_logs")):
        return 0.1 * v
    if len(shape) == 1:
        return 1 + 0.1 * v
    fan_in = shape[2] if name.endswith("dt_projs_weight") else np.prod(shape[1:])
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
    return v * np.float32(gain / np.sqrt(fan_in))


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """{PyTorch name: shape} of a released model, by its name of `model_name`.

    SegMAN's for Cityscapes and COCO-Stuff are segman_VARIANT_cityscapes and segman_VARIANT_coco.
    """
    file = GOLDENS / f"{name}_keys.json"
    if file.exists():
        return {key: tuple(shape) for key, shape in json.loads(file.read_text()).items()}
    lists = json.loads((GOLDENS / "segman_key_lists.json").read_text())
    differing = {key: tuple(shape) for key, shape in lists[name].items()}
    family, _, variant = name.removesuffix("_cityscapes").removesuffix("_coco").rpartition("_")
    ade = keys(f"segman_{variant}")
    if family == "segman_encoder":  # as in `backbone` of the segmentation model
        inside = {k.removeprefix("backbone."): s for k, s in ade.items() if "backbone." in k}
        return inside | differing
    return ade | differing


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz") as data:
        return dict(data)


def torch_format(name: str) -> TorchFormat:
    """Names and layouts of the tensors of a model of this name."""
    form = get_family("segman" if name.startswith("segman") else "segret").load().torch
    assert form is not None
    return form


def filled(tree: Any, name: str = "segret_tiny") -> Any:
    """The golden weights in the structure of abstract parameters or statistics."""
    shapes, form = keys(name), torch_format(name)
    prefix = not name.startswith(("rmt", "segman_encoder"))

    def leaf(path: tuple, like: jax.ShapeDtypeStruct) -> jax.Array:
        path = tuple(entry.key for entry in path)
        key = form.key(path, prefix=prefix)
        value = form.from_torch(weight(key, shapes[key]), path)
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


def map_errors(actual: Any, expected: dict[str, np.ndarray], key: str) -> dict[str, float]:
    """Return {golden: relative error} of one of a model's maps, in PyTorch's layout.

    Of SegMAN's maps the goldens have the first channels, and mean and RMS of all.
    """
    theirs = expected[key]
    if f"{key}_rms" not in expected:
        return {key: relative_error(actual, theirs)}
    ours = np.asarray(actual, np.float64)[0]
    found = {"mean": ours.mean((1, 2)), "rms": np.sqrt(np.square(ours).mean((1, 2)))}
    scale = np.sqrt(np.mean(np.square(expected[f"{key}_rms"], dtype=float)))
    return {key: relative_error(ours[: len(theirs)], theirs)} | {
        f"{key}_{name}": float(np.abs(value - expected[f"{key}_{name}"]).max() / scale)
        for name, value in found.items()
    }


def tensors(name: str) -> dict[str, np.ndarray]:
    """Return a PyTorch model's tensors by name, but those that the model computes itself."""
    shapes = {k: s for k, s in keys(name).items() if not any(c in k for c in COMPUTED)}
    return {key: weight(key, shape) for key, shape in shapes.items()}
