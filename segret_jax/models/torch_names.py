"""Parts that the PyTorch formats of several families have: names, layouts, recognition."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from segret_jax.errors import InputError
from segret_jax.models.config import ModelConfig
from segret_jax.models.families import get_family
from segret_jax.models.family import Path

Modules = Sequence[tuple[str, str | Callable[[re.Match], str]]]
Tensors = Mapping[str, np.ndarray]

ENCODER_BLOCK = re.compile(r"(?:backbone\.)?layers\.(\d{1,4})\.blocks\.(\d{1,4})\.")
COUNTER_REASON = "counter of PyTorch's batch norm, read by nothing"
CONSTANT_REASON = "constant, equal to what is computed here"
MAX_DIFFERENT = 3  # of 8 widths and depths: the nearest variant is meant, and compared strictly


def numbered(name: str, factor: int, offset: int) -> Callable[[re.Match], str]:
    """Return a function from a match of number i to `name` with factor·i + offset at its {}."""
    return lambda match: name.format(factor * int(match[1]) + offset)


def torch_key(path: Path, modules: Modules, leaves: Mapping[str, str], *, prefix: bool) -> str:
    """Return the PyTorch name of a leaf.

    Args:
        path: The path of the leaf in a tree of parameters or statistics.
        modules: Patterns in the path, joined by "/", and what replaces them, in this order.
        leaves: The PyTorch names of parameters and statistics.
        prefix: Whether the encoder's names begin with `backbone.`.
    """
    *parents, leaf = map(str, path)
    module = "/".join(parents)
    for pattern, name in modules:
        module = re.sub(pattern, name, module)
    name = f"{module}.{leaves[leaf]}"
    return name if prefix else name.removeprefix("backbone.")


def kernel_from_torch(tensor: np.ndarray, *, is_conv: bool = False) -> np.ndarray:
    """Return a kernel in the layout of Flax; `is_conv` keeps a 1×1 convolution one."""
    if tensor.ndim == 2 or (tensor.shape[2:] == (1, 1) and not is_conv):
        return tensor.reshape(tensor.shape[:2]).T
    if tensor.shape[1] == 1:  # depthwise
        return np.transpose(tensor[:, 0], (1, 2, 0))  # [c, 1, k, k] → [k, k, c]
    return np.transpose(tensor, (2, 3, 1, 0))  # OIHW → HWIO


def kernel_to_torch(kernel: np.ndarray, *, is_conv: bool) -> np.ndarray:
    """Return a kernel in PyTorch's layout; `is_conv` makes a linear one a 1×1 convolution."""
    if kernel.ndim == 3:
        return np.transpose(kernel, (2, 0, 1))[:, None]  # [k, k, c] → [c, 1, k, k]
    if kernel.ndim == 4:
        return np.transpose(kernel, (3, 2, 0, 1))  # HWIO → OIHW
    return kernel.T[:, :, None, None] if is_conv else kernel.T


def find_variant(tensors: Tensors, family: str, width: str) -> str | None:
    """Return the variant whose widths and depths are those of the blocks, or nearly.

    Args:
        tensors: The tensors by name.
        family: The name of the family.
        width: The name, in a block, of a tensor of as many numbers as the stage has channels.

    Returns:
        The name of the variant; None if no block has a tensor `width`, so of another family.

    Raises:
        InputError: No variant is near.
    """
    matches = {name: match for name in tensors if (match := ENCODER_BLOCK.match(name))}
    depths = Counter(layer for layer, _ in {match.groups() for match in matches.values()})
    widths = {m[1]: tensors[name].size for name, m in matches.items() if name == m[0] + width}
    found = [(widths.get(layer, 0), depths[layer]) for layer in sorted(depths, key=int)]
    if not widths:
        return None
    variants = get_family(family).variants

    def num_different(name: str) -> int:
        expected = zip(variants[name].widths, variants[name].depths, strict=True)
        pairs = zip(expected, found, strict=False)
        return sum((a != c) + (b != d) for (a, b), (c, d) in pairs) + 8 * (len(found) != 4)

    best = min(variants, key=num_different)
    if num_different(best) <= MAX_DIFFERENT:
        return best
    stages = f"stages of (width, blocks) {found[:8]}, as no variant of {family}"
    raise InputError(f"has {stages}. Give a file of {', '.join(variants)}")


def width_setting(
    name: str, tensor: np.ndarray | None, own: int, model: ModelConfig, given: Collection[str]
) -> int:
    """Return the value of a setting of which 0 means the variant's own width.

    Args:
        name: The name of the setting.
        tensor: A tensor with that width as its first axis, if the file has it.
        own: The variant's own width.
        model: The settings, of which the user set those of `given`.
        given: The names of the settings that the user set.
    """
    width = tensor.shape[0] if tensor is not None and tensor.ndim else own
    is_number = f"settings.{name}" in given and getattr(model.settings, name) > 0
    return width if is_number or width != own else 0


def counters(names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the counters of the batch norms whose statistics are among `names`."""
    ending = "running_mean"
    norms = [name.removesuffix(ending) for name in names if name.endswith("." + ending)]
    return {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}


def rotary_angle(count: int) -> np.ndarray:
    """Return the angles 10000^(−j/(count − 1)) of the rotation by position, each twice."""
    return np.repeat(10000.0 ** -np.linspace(0, 1, count), 2).astype(np.float32)
