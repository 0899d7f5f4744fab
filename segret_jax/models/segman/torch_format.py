"""Released PyTorch checkpoints: names and layouts of tensors, and which model a file holds.

    SegMAN                       backbone.…, decode_head.…
    SegMAN's ImageNet classifier patch_embed.…, layers.…, classifier.…

Stage i is `layers.{2i}`, the downsampling after it `layers.{2i + 1}`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segret_jax.models import torch_names
from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Path
from segret_jax.models.segman.scan_layer import DIRECTIONS
from segret_jax.models.segman.variants import VARIANTS
from segret_jax.models.torch_names import numbered

# Our path, joined by "/", to PyTorch's module; LEAVES has the leaf's own name.
MODULES: torch_names.Modules = [
    # The stem is a sequence conv, norm, GELU, conv, …: entry 3i holds convolution i.
    (r"encoder/stem/convs/(\d+)", numbered("backbone.patch_embed.{}", 3, 0)),
    (r"encoder/stem/norms/(\d+)", numbered("backbone.patch_embed.{}", 3, 1)),
    (r"encoder/downsamples/(\d+)/conv", numbered("backbone.layers.{}.0", 2, 1)),
    (r"encoder/downsamples/(\d+)/norm", numbered("backbone.layers.{}.1", 2, 1)),
    (r"encoder/stages/(\d+)", numbered("backbone.layers.{}.blocks", 2, 0)),
    (r"mixer/dwconv$", "mixer/dwconv.0"),
    (r"mixer/dwconv_norm$", "mixer/dwconv.1"),
    (r"mixer/scan$", "mixer/ssm"),
    (r"mixer/out$", "mixer/proj"),
    (r"/mixer\b", ".token_mixer"),
    (r"/pos(\d)$", r".cpe\1"),
    (r"/scale(\d)$", r".layer_scale\1"),
    (r"decoder/projections/(\d+)", numbered("decode_head.linear_c{}.proj", 1, 2)),
    (r"decoder/classify", "decode_head.conv_seg"),
    (r"decoder/block/scan", "decode_head.vssm.token_mixer"),
    (r"decoder/block", "decode_head.vssm"),
    (r"/ffn/", ".mlp."),
    (r"decoder/(\w+)/norm$", r"decoder/\1/bn"),
    (r"decoder/fuse/", "decode_head.linear_fuse."),
    (r"decoder/short/", "decode_head.short_path."),
    (r"decoder/pool/", "decode_head.image_pool.1."),
    (r"decoder/down(\d)/", r"decode_head.conv_downsample_\1."),
    (r"decoder/collect1/", "decode_head.reduce_channels.2."),
    (r"decoder/collect2/", "decode_head.reduce_channels.1."),
    (r"decoder/collect4/", "decode_head.reduce_channels.0."),
    (r"decoder/out/", "decode_head.proj_out."),
    (r"decoder/concat/", "decode_head.cat."),
    (r"^proj$", "classifier.0"),
    (r"^norm$", "classifier.1"),
    (r"^head$", "classifier.4"),
    (r"/", "."),
]
LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var", "neighborhood_bias": "rpb.0", "global_bias": "rpb.1",
    "project": "x_proj_weight", "dt_kernel": "dt_projs_weight", "dt_bias": "dt_projs_bias",
    "a_log": "A_logs", "skip": "Ds",
}  # fmt: skip
# A convolution of r×r pixels here is pixel_unshuffle(r) and a 1×1 convolution there.
COLLECTED = {"collect1": 4, "collect2": 2}
class_layers: Mapping[str, Sequence[str]] = {  # with an output for each class
    "segmentation": ("decode_head.conv_seg",),
    "classification": ("classifier.4",),
}
encoder_block = torch_names.ENCODER_BLOCK
unused_reasons: Mapping[str, str] = {
    ".num_batches_tracked": torch_names.COUNTER_REASON,
    ".rope.angle": torch_names.CONSTANT_REASON,
}
constants: Sequence[str] = (".rope.angle",)


def key(path: Path, *, prefix: bool = True) -> str:
    """Return the PyTorch name of the leaf at `path` of a model's parameters or statistics.

    `prefix=False` gives the classifier's names, whose encoder has none.
    """
    return torch_names.torch_key(path, MODULES, LEAVES, prefix=prefix)


def from_torch(tensor: np.ndarray, path: Path) -> np.ndarray:
    """Return a PyTorch tensor in the layout of the leaf at `path`."""
    match path[-1]:
        case "kernel":
            if (side := COLLECTED.get(str(path[1]))) is not None:
                tensor = tensor.reshape(len(tensor), -1, side, side)
            return torch_names.kernel_from_torch(tensor, is_conv=path[-2] == "conv")
        case "scale":
            return tensor.reshape(-1)  # of LayerScale [c, 1, 1, 1]
        case "project":
            return tensor[:, :, 0].T
        case "dt_kernel":
            return np.swapaxes(tensor, 1, 2)
        case "a_log" | "skip":
            return tensor.reshape(DIRECTIONS, -1)
    return tensor


def to_torch(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the leaf at `path` in PyTorch's layout; the exact inverse of `from_torch`."""
    match path[-1]:
        case "kernel":
            kernel = torch_names.kernel_to_torch(array, is_conv="projections" not in path)
            is_collected = str(path[1]) in COLLECTED
            return kernel.reshape(len(kernel), -1, 1, 1) if is_collected else kernel
        case "scale" if path[-2] in ("scale1", "scale2"):
            return array.reshape(-1, 1, 1, 1)
        case "project":
            return array.T[:, :, None]
        case "dt_kernel":
            return np.swapaxes(array, 1, 2)
        case "a_log":
            return array.reshape(-1, 1)
        case "skip":
            return array.reshape(-1)
    return array


def infer(
    tensors: Mapping[str, np.ndarray], model: ModelConfig, given: Collection[str]
) -> dict[str, Any] | None:
    """Return the fields of ModelConfig and of the settings that names and shapes tell.

    None for tensors of another family. Raises InputError for those of no variant.
    """
    name = torch_names.find_variant(tensors, "segman", "cpe1.bias")
    if name is None:
        return None
    if not any(tensor.startswith("decode_head.") for tensor in tensors):
        return {"variant": name, "task": "classification"}

    def width(setting: str, tensor: str) -> int:
        own = getattr(VARIANTS[name], setting)
        return torch_names.width_setting(setting, tensors.get(tensor), own, model, given)

    return {
        "variant": name,
        "task": "segmentation",
        "decoder_channels": width("decoder_channels", "decode_head.linear_fuse.conv.weight"),
        "projection_channels": width("projection_channels", "decode_head.linear_c2.proj.weight"),
    }


def unused(
    model: ModelConfig, num_classes: int, names: Iterable[str], *, prefix: bool
) -> dict[str, np.ndarray]:
    """Return the tensors that the original has beside those of `names`, at their defaults."""
    variant, encoder = VARIANTS[model.variant], "backbone." * prefix
    stages = enumerate(zip(variant.widths, variant.heads, strict=True))
    angles = {
        f"{encoder}layers.{2 * i}.rope.angle": torch_names.rotary_angle(width // heads // 4)
        for i, (width, heads) in stages
    }
    return torch_names.counters(names) | angles


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
