"""Released PyTorch checkpoints: names and layouts of tensors, and which model a file holds.

SegMAN               backbone.…, decode_head.…
ImageNet classifier  patch_embed.…, layers.…, classifier.…
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segret_jax.errors import InputError, printable
from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Path
from segret_jax.models.segman.scan_layer import DIRECTIONS
from segret_jax.models.segman.variants import VARIANTS, Variant


def _numbered(name: str, factor: int, offset: int) -> Callable[[re.Match], str]:
    """Return the name of our entry i in a sequence where it is entry factor·i + offset."""
    return lambda match: f"{name}{factor * int(match[1]) + offset}"


# Our path, joined by "/", to PyTorch's module; LEAVES has the leaf's own name.
MODULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"encoder/stem/convs/(\d+)", _numbered("backbone.patch_embed.", 3, 0)),
    (r"encoder/stem/norms/(\d+)", _numbered("backbone.patch_embed.", 3, 1)),
    (r"encoder/downsamples/(\d+)/conv", lambda m: f"backbone.layers.{2 * int(m[1]) + 1}.0"),
    (r"encoder/downsamples/(\d+)/norm", lambda m: f"backbone.layers.{2 * int(m[1]) + 1}.1"),
    (r"encoder/stages/(\d+)/(\d+)", lambda m: f"backbone.layers.{2 * int(m[1])}.blocks.{m[2]}"),
    (r"/mixer/dwconv_norm$", r".token_mixer.dwconv.1"),
    (r"/mixer/dwconv$", r".token_mixer.dwconv.0"),
    (r"/mixer/scan$", r".token_mixer.ssm"),
    (r"/mixer/out$", r".token_mixer.proj"),
    (r"/mixer\b", r".token_mixer"),
    (r"decoder/projections/(\d+)", lambda match: f"decode_head.linear_c{int(match[1]) + 2}.proj"),
    (r"decoder/classify", r"decode_head.conv_seg"),
    (r"decoder/block/scan", r"decode_head.vssm.token_mixer"),
    (r"decoder/block/", r"decode_head.vssm/"),
    (r"decoder/fuse/", r"decode_head.linear_fuse/"),
    (r"decoder/short/", r"decode_head.short_path/"),
    (r"decoder/pool/", r"decode_head.image_pool.1/"),
    (r"decoder/down(\d)/", r"decode_head.conv_downsample_\1/"),
    (r"decoder/collect1/", r"decode_head.reduce_channels.2/"),
    (r"decoder/collect2/", r"decode_head.reduce_channels.1/"),
    (r"decoder/collect4/", r"decode_head.reduce_channels.0/"),
    (r"decoder/out/", r"decode_head.proj_out/"),
    (r"decoder/concat/", r"decode_head.cat/"),
    (r"(decode_head.*)/norm$", r"\1.bn"),
    (r"/pos(\d)$", r".cpe\1"),
    (r"/scale(\d)$", r".layer_scale\1"),
    (r"/ffn/", r".mlp/"),
    (r"^proj$", r"classifier.0"),
    (r"^norm$", r"classifier.1"),
    (r"^head$", r"classifier.4"),
    (r"/", r"."),
]
LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var", "neighborhood_bias": "rpb.0", "global_bias": "rpb.1",
    "project": "x_proj_weight", "dt_kernel": "dt_projs_weight", "dt_bias": "dt_projs_bias",
    "a_log": "A_logs", "skip": "Ds",
}  # fmt: skip
COLLECTED = {"collect1": 4, "collect2": 2}  # r×r pixels: a convolution here, pixel_unshuffle there
class_layers: Mapping[str, Sequence[str]] = {  # with an output for each class
    "segmentation": ("decode_head.conv_seg",),
    "classification": ("classifier.4",),
}
encoder_block = re.compile(r"(?:backbone\.)?layers\.(\d{1,4})\.blocks\.(\d{1,4})\.")
WIDTH = re.compile(r"(?:backbone\.)?layers\.(\d{1,4})\.blocks\.\d{1,4}\.cpe1\.bias")
MAX_DIFFERENT = 3  # of 8 widths and depths: the nearest variant is meant, and compared strictly
unused_reasons: Mapping[str, str] = {
    ".num_batches_tracked": "counter of PyTorch's batch norm, read by nothing",
    ".rope.angle": "constant, equal to what is computed here",
}
constants: Sequence[str] = (".rope.angle",)


def key(path: Path, *, prefix: bool = True) -> str:
    """Return the PyTorch name of the leaf at `path` of a model's parameters or statistics.

    `prefix=False` gives the classifier's names, whose encoder has none.
    """
    *modules, leaf = map(str, path)
    module = "/".join(modules)
    for pattern, name in MODULES:
        module = re.sub(pattern, name, module)
    name = f"{module}.{LEAVES[leaf]}"
    return name if prefix else name.removeprefix("backbone.")


def from_torch(tensor: np.ndarray, path: Path) -> np.ndarray:
    """Return a PyTorch tensor in the layout of the leaf at `path`."""
    leaf = path[-1]
    if leaf == "project":
        return tensor[:, :, 0].T
    if leaf == "dt_kernel":
        return np.swapaxes(tensor, 1, 2)
    if leaf in ("a_log", "skip"):
        return tensor.reshape(DIRECTIONS, -1)
    if leaf == "scale" and tensor.ndim == 4:  # of LayerScale
        return tensor.reshape(-1)
    if leaf != "kernel":
        return tensor
    if (side := COLLECTED.get(str(path[1]))) is not None:
        tensor = tensor.reshape(len(tensor), -1, side, side)
    if tensor.ndim == 2 or _is_linear(path):
        return tensor.reshape(tensor.shape[:2]).T
    if _is_depthwise(path):
        return np.transpose(tensor[:, 0], (1, 2, 0))  # [c, 1, k, k] → [k, k, c]
    return np.transpose(tensor, (2, 3, 1, 0))  # OIHW → HWIO


def to_torch(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the leaf at `path` in PyTorch's layout; the exact inverse of `from_torch`."""
    leaf, modules = path[-1], list(map(str, path[:-1]))
    if leaf == "project":
        return array.T[:, :, None]
    if leaf == "dt_kernel":
        return np.swapaxes(array, 1, 2)
    if leaf in ("a_log", "skip"):
        return array.reshape(-1, 1) if leaf == "a_log" else array.reshape(-1)
    if modules[-1] in ("scale1", "scale2") and leaf == "scale":
        return array.reshape(-1, 1, 1, 1)
    if leaf != "kernel":
        return array
    if _is_linear(path):
        return array.T if "projections" in modules else array.T[:, :, None, None]
    if _is_depthwise(path):
        return np.transpose(array, (2, 0, 1))[:, None]  # [k, k, c] → [c, 1, k, k]
    array = np.transpose(array, (3, 2, 0, 1))  # HWIO → OIHW
    if modules[1] in COLLECTED:
        array = array.reshape(len(array), -1, 1, 1)
    return array


def _is_linear(path: Path) -> bool:
    modules = list(map(str, path[:-1]))
    return modules[-1] in ("qkv", "out", "fc1", "fc2", "classify", "proj", "head") or (
        "projections" in modules
    )


def _is_depthwise(path: Path) -> bool:
    return path[-2] in ("pos1", "pos2", "lepe", "dwconv")


def infer(
    tensors: Mapping[str, np.ndarray], model: ModelConfig, given: Collection[str]
) -> dict[str, Any]:
    """Return the fields of ModelConfig and of the settings that names and shapes tell.

    Raises InputError for tensors of another model.
    """
    name = _variant(tensors)
    if not any(name.startswith("decode_head.") for name in tensors):
        return {"variant": name, "task": "classification"}
    widths = {
        "decoder_channels": _width(tensors, "linear_fuse.conv.weight"),
        "projection_channels": _width(tensors, "linear_c2.proj.weight"),
    }
    found: dict[str, Any] = {"variant": name, "task": "segmentation"}
    for setting, width in widths.items():
        own = getattr(VARIANTS[name], setting)
        is_number = f"settings.{setting}" in given and getattr(model.settings, setting) > 0
        found[setting] = (width or own) if is_number or (width or own) != own else 0
    return found


def _width(tensors: Mapping[str, np.ndarray], name: str) -> int:
    return next(iter(tensors.get(f"decode_head.{name}", np.zeros(())).shape), 0)


def _variant(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the variant whose widths and depths are those of the blocks, or nearly."""
    blocks = {(int(m[1]), int(m[2])) for m in map(encoder_block.match, tensors) if m}
    depths = Counter(layer for layer, _ in blocks)
    widths = {int(m[1]): tensors[m[0]].size for m in map(WIDTH.fullmatch, tensors) if m}
    found = [(widths.get(layer, 0), depths[layer]) for layer in sorted(depths)]

    def num_different(variant: Variant) -> int:
        pairs = zip(zip(variant.widths, variant.depths, strict=True), found, strict=False)
        return sum((a != c) + (b != d) for (a, b), (c, d) in pairs) + 8 * (len(found) != 4)

    best = min(VARIANTS, key=lambda name: num_different(VARIANTS[name]))
    if widths and num_different(VARIANTS[best]) <= MAX_DIFFERENT:
        return best
    first = printable(", ".join(list(tensors)[:3]))
    what = f"stages have (width, blocks) {found[:8]}" if found else f"names begin with {first}"
    raise InputError(f"is not SegMAN: its {what}. Give a file of {', '.join(VARIANTS)}")


def unused(
    model: ModelConfig, num_classes: int, names: Iterable[str], *, prefix: bool
) -> dict[str, np.ndarray]:
    """Return the tensors that the original has beside those of `names`, at their defaults.

    Angles are 10000^(−j/(m−1)) for j < m = ⌊d/4⌋, each twice, for head width d.
    """
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        if name.endswith(".running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            tensors[counter] = np.zeros((), np.int64)
    variant = VARIANTS[model.variant]
    for i, (width, heads) in enumerate(zip(variant.widths, variant.heads, strict=True)):
        angle = np.repeat(10000.0 ** -np.linspace(0, 1, width // heads // 4), 2)
        tensors["backbone." * prefix + f"layers.{2 * i}.rope.angle"] = angle.astype(np.float32)
    return tensors


def check_export(model: ModelConfig) -> None:
    """Every model has a PyTorch file."""


def describe(model: ModelConfig) -> list[str]:
    """Return sentences about a model: what it is, and where it is not as released."""
    segments = model.task == "segmentation"
    kind = "SegMAN for segmentation" if segments else "SegMAN's ImageNet classifier"
    notes = [
        f"NOTE: {name.replace('_', ' ')} {value}, not the variant's"
        for name in ("decoder_channels", "projection_channels")
        if (value := getattr(model.settings, name))
    ]
    return [kind, *notes]
