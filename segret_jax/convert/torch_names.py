"""Names and layouts of the released PyTorch checkpoints, for each leaf of our models.

One table serves SegRet (`backbone.` and `decode_head.`) and the RMT classifier (no prefix).
"""

import re
from collections.abc import Callable

import numpy as np


def _stem(offset: int) -> Callable[[re.Match], str]:
    # The stem is a sequence conv, norm, GELU, conv, …: entry 3i holds convolution i.
    return lambda match: f"backbone.patch_embed.proj.{3 * int(match[1]) + offset}"


def _projection(match: re.Match) -> str:
    return f"decode_head.linear_c{int(match[1]) + 1}/"


# Our path, joined by "/", to PyTorch's module; the leaf's own name follows from LEAVES.
MODULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"encoder/stem/convs/(\d+)", _stem(0)),
    (r"encoder/stem/norms/(\d+)", _stem(1)),
    (r"encoder/stages/(\d+)/(\d+)", r"backbone.layers.\1.blocks.\2"),
    (r"encoder/downsamples/(\d+)/conv", r"backbone.layers.\1.downsample.reduction"),
    (r"encoder/downsamples/(\d+)/norm", r"backbone.layers.\1.downsample.norm"),
    (r"decoder/projections/(\d+)/", _projection),
    (r"/linear$", r".proj"),
    (r"/zero_conv$", r".zeroLayer.conv"),
    (r"/zero_norm$", r".zeroLayer.bn"),
    (r"decoder/fuse_norm", r"decode_head.linear_fuse.bn"),
    (r"decoder/fuse", r"decode_head.linear_fuse.conv"),
    (r"decoder/classify", r"decode_head.linear_pred"),
    (r"/pos$", r".pos.conv"),
    (r"/norm1$", r".retention_layer_norm"),
    (r"/norm2$", r".final_layer_norm"),
    (r"/retention/([qkv]|out)$", r".retention.\1_proj"),
    (r"/retention/lepe$", r".retention.lepe.conv"),
    (r"/ffn/(fc1|fc2)$", r".ffn.\1"),
    (r"/ffn/dwconv$", r".ffn.dwconv.conv"),
]
LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var", "gamma1": "gamma_1", "gamma2": "gamma_2",
}  # fmt: skip
DEPTHWISE = ("pos", "lepe", "dwconv")
POINTWISE = ("zero_conv", "fuse", "classify")  # 1×1 convolutions there, Linears here


def torch_key(path: tuple[str | int, ...], *, prefix: bool = True) -> str:
    """Return the PyTorch name of the leaf at `path` of a model's parameters or statistics.

    `prefix=False` gives the classifier's names, whose encoder has none.
    """
    *modules, leaf = map(str, path)
    module = "/".join(modules)
    for pattern, name in MODULES:
        module = re.sub(pattern, name, module)
    key = ".".join(part for part in (module, LEAVES[leaf]) if part)
    return key if prefix else key.removeprefix("backbone.")


def from_torch(tensor: np.ndarray, path: tuple[str | int, ...]) -> np.ndarray:
    """Bring a PyTorch tensor into the layout of the leaf at `path`."""
    if tensor.ndim == 4:
        if path[-1] in ("gamma1", "gamma2"):
            return tensor.reshape(-1)
        if len(path) > 1 and path[-2] in DEPTHWISE:
            return np.transpose(tensor[:, 0], (1, 2, 0))  # [c, 1, k, k] → [k, k, c]
        if tensor.shape[2:] == (1, 1):
            return tensor[:, :, 0, 0].T  # a 1×1 convolution is a Linear here
        return np.transpose(tensor, (2, 3, 1, 0))  # OIHW → HWIO
    return tensor.T if tensor.ndim == 2 else tensor


def to_torch(array: np.ndarray, path: tuple[str | int, ...]) -> np.ndarray:
    """Bring the leaf at `path` into PyTorch's layout; the exact inverse of `from_torch`."""
    if path[-1] in ("gamma1", "gamma2"):
        return array.reshape(1, 1, 1, -1)
    if path[-1] != "kernel":
        return array
    if path[-2] in DEPTHWISE:
        return np.transpose(array, (2, 0, 1))[:, None]  # [k, k, c] → [c, 1, k, k]
    if array.ndim == 4:
        return np.transpose(array, (3, 2, 0, 1))  # HWIO → OIHW
    return array.T[:, :, None, None] if path[-2] in POINTWISE else array.T


def torch_shape(shape: tuple[int, ...], path: tuple[str | int, ...]) -> tuple[int, ...]:
    """Return the shape in PyTorch of a leaf of `shape` at `path`."""
    return to_torch(np.broadcast_to(np.float32(0), shape), path).shape
