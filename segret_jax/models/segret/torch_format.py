"""Released PyTorch checkpoints: names and layouts of tensors, and which model a file holds.

    SegRet         backbone.…, decode_head.…                plain encoder
    RMT ImageNet   layers.…, proj, norm, head[, aux_head]   with rotary phase and FFN convolutions

A file without `ffn.dwconv` has the plain encoder. Rotation of q and k leaves no trace in a file,
but the released models have both extras or neither.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segret_jax.errors import InputError
from segret_jax.models import torch_names
from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Path
from segret_jax.models.retention.decay import head_log_decay
from segret_jax.models.segret.settings import SegRetSettings
from segret_jax.models.segret.variants import VARIANTS
from segret_jax.models.torch_names import numbered

# Our path, joined by "/", to PyTorch's module; LEAVES has the leaf's own name.
MODULES: torch_names.Modules = [
    # The stem is a sequence conv, norm, GELU, conv, …: entry 3i holds convolution i.
    (r"encoder/stem/convs/(\d+)", numbered("backbone.patch_embed.proj.{}", 3, 0)),
    (r"encoder/stem/norms/(\d+)", numbered("backbone.patch_embed.proj.{}", 3, 1)),
    (r"encoder/stages/(\d+)/(\d+)", r"backbone.layers.\1.blocks.\2"),
    (r"encoder/downsamples/(\d+)/conv", r"backbone.layers.\1.downsample.reduction"),
    (r"encoder/downsamples/(\d+)/norm", r"backbone.layers.\1.downsample.norm"),
    (r"decoder/projections/(\d+)/", numbered("decode_head.linear_c{}/", 1, 1)),
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
POINTWISE = ("zero_conv", "fuse", "classify")  # 1×1 convolutions there, Linears here
class_layers: Mapping[str, Sequence[str]] = {  # with an output for each class
    "segmentation": ("decode_head.linear_pred", "decode_head.conv_seg"),
    "classification": ("head", "aux_head"),
}
encoder_block = torch_names.ENCODER_BLOCK
CONV_SEG_CHANNELS = 128  # the default of mmsegmentation's decode heads, in every variant
unused_reasons: Mapping[str, str] = {
    ".num_batches_tracked": torch_names.COUNTER_REASON,
    ".Relpos.angle": torch_names.CONSTANT_REASON,
    ".Relpos.decay": torch_names.CONSTANT_REASON,
    "decode_head.conv_seg.": "layer that the original never calls",
}
constants: Sequence[str] = (".Relpos.",)


def key(path: Path, *, prefix: bool = True) -> str:
    """Return the PyTorch name of the leaf at `path` of a model's parameters or statistics.

    `prefix=False` gives the classifier's names, whose encoder has none.
    """
    return torch_names.torch_key(path, MODULES, LEAVES, prefix=prefix)


def from_torch(tensor: np.ndarray, path: Path) -> np.ndarray:
    """Return a PyTorch tensor in the layout of the leaf at `path`."""
    if path[-1] in ("gamma1", "gamma2"):
        return tensor.reshape(-1)
    return torch_names.kernel_from_torch(tensor) if path[-1] == "kernel" else tensor


def to_torch(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the leaf at `path` in PyTorch's layout; the exact inverse of `from_torch`."""
    if path[-1] in ("gamma1", "gamma2"):
        return array.reshape(1, 1, 1, -1)
    if path[-1] != "kernel":
        return array
    return torch_names.kernel_to_torch(array, is_conv=path[-2] in POINTWISE)


def infer(
    tensors: Mapping[str, np.ndarray], model: ModelConfig, given: Collection[str]
) -> dict[str, Any] | None:
    """Return the fields of ModelConfig and of the settings that names and shapes tell.

    None for tensors of another family. No file contradicts a given `settings.rotary`. Raises
    InputError for tensors of no variant.
    """
    variant = torch_names.find_variant(tensors, "segret", "pos.conv.bias")
    if variant is None:
        return None
    ffn_conv = any(".ffn.dwconv." in name for name in tensors)
    rotary = model.settings.rotary if "settings.rotary" in given else ffn_conv
    encoder = {"variant": variant, "rotary": rotary, "ffn_conv": ffn_conv}
    if not any(name.startswith("decode_head.") for name in tensors):
        token_head = any(name.startswith("aux_head.") for name in tensors)
        return encoder | {"task": "classification", "token_head": token_head}
    own, setting = VARIANTS[variant].decoder_channels, "decoder_channels"
    fuse = tensors.get("decode_head.linear_fuse.conv.weight")
    return encoder | {
        "task": "segmentation",
        "token_head": False,
        setting: torch_names.width_setting(setting, fuse, own, model, given),
        "zero_branch": any(".zeroLayer." in name for name in tensors),
    }


def unused(
    model: ModelConfig, num_classes: int, names: Iterable[str], *, prefix: bool
) -> dict[str, np.ndarray]:
    """Return the tensors that the original has beside those of `names`, at their defaults."""
    tensors = torch_names.counters(names)
    variant = VARIANTS[model.variant]
    stages = zip(variant.widths, variant.heads, variant.decay_spans, strict=True)
    for i, (width, heads, span) in enumerate(stages):
        name = "backbone." * prefix + f"layers.{i}.Relpos"
        decay = head_log_decay(heads, span=span)
        tensors[f"{name}.angle"] = torch_names.rotary_angle(width // heads // 2)
        tensors[f"{name}.decay"] = np.array(decay, np.float32)
    if model.task == "segmentation":
        shape = (num_classes, CONV_SEG_CHANNELS, 1, 1)
        tensors["decode_head.conv_seg.weight"] = np.zeros(shape, np.float32)
        tensors["decode_head.conv_seg.bias"] = np.zeros(shape[0], np.float32)
    return tensors


def check_export(model: ModelConfig) -> None:
    """Raise InputError for a model that no PyTorch file can describe."""
    rotary, ffn_conv = model.settings.rotary, model.settings.ffn_conv
    if rotary != ffn_conv:
        raise InputError(
            f"model.settings.rotary is {rotary} and ffn_conv {ffn_conv}: no PyTorch model has one "
            "without the other, and its file would be read as another model"
        )
    if (decay := model.settings.decay) != "additive":
        raise InputError(f"model.settings.decay is {decay!r}; PyTorch models have only 'additive'")


def describe(model: ModelConfig) -> list[str]:
    """Return sentences about a model: what it is, and where it is not as released."""
    settings, segments = model.settings, model.task == "segmentation"
    parts = {"rotary phase": settings.rotary, "FFN convolutions": settings.ffn_conv}
    encoder = ", ".join(
        f"{word} {' and '.join(part for part in parts if parts[part] == present)}"
        for word, present in (("with", True), ("without", False))
        if present in parts.values()
    )
    head = ", with the second head of token labels" if settings.token_head else ""
    kind = "SegRet for segmentation" if segments else f"RMT ImageNet classifier{head}"
    extras = {"ffn_conv": "ffn.dwconv", "rotary": "the rotary phase"}
    lost = {key: part for key, part in extras.items() if getattr(settings, key)}
    keep = " ".join(f"--config.model.settings.{key}=true" for key in reversed(lost))
    notes = []
    if segments and not settings.zero_branch:
        notes.append(
            "the file has no zeroLayer, so this is taken as the ablation without the zero branch, "
            "F_i = Linear_i(f_i); --config.model.settings.zero_branch=true makes that an error"
        )
    if segments and settings.decoder_channels:
        notes.append(f"decoder of {settings.decoder_channels} channels, not the variant's")
    if settings.decay != SegRetSettings().decay:
        notes.append(f"decay {settings.decay!r}, which no released weights are trained with")
    if lost and not segments:
        notes.append(
            "training that starts from it (--config.init_from) takes SegRet's plain encoder, and "
            f"so drops {' and '.join(lost.values())}, which changes the function. To keep "
            f"{'them' if len(lost) > 1 else 'it'}: {keep}"
        )
    return [f"{kind}, encoder {encoder}", *(f"NOTE: {note}" for note in notes)]
