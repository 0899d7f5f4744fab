"""Released PyTorch checkpoints: names and layouts of tensors, and which model a file holds.

    SegRet         backbone.…, decode_head.…                plain encoder
    RMT ImageNet   layers.…, proj, norm, head[, aux_head]   with rotary phase and FFN convolutions

A file without `ffn.dwconv` has the plain encoder. Rotation of q and k leaves no trace in a file,
but the released models have both extras or neither.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segret_jax.errors import InputError, printable
from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Path
from segret_jax.models.retention.decay import head_log_decay
from segret_jax.models.segret.settings import SegRetSettings
from segret_jax.models.segret.variants import VARIANTS


def _stem(offset: int) -> Callable[[re.Match], str]:
    # The stem is a sequence conv, norm, GELU, conv, …: entry 3i holds convolution i.
    return lambda match: f"backbone.patch_embed.proj.{3 * int(match[1]) + offset}"


# Our path, joined by "/", to PyTorch's module; LEAVES has the leaf's own name.
MODULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"encoder/stem/convs/(\d+)", _stem(0)),
    (r"encoder/stem/norms/(\d+)", _stem(1)),
    (r"encoder/stages/(\d+)/(\d+)", r"backbone.layers.\1.blocks.\2"),
    (r"encoder/downsamples/(\d+)/conv", r"backbone.layers.\1.downsample.reduction"),
    (r"encoder/downsamples/(\d+)/norm", r"backbone.layers.\1.downsample.norm"),
    (r"decoder/projections/(\d+)/", lambda match: f"decode_head.linear_c{int(match[1]) + 1}/"),
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
class_layers: Mapping[str, Sequence[str]] = {  # with an output for each class
    "segmentation": ("decode_head.linear_pred", "decode_head.conv_seg"),
    "classification": ("head", "aux_head"),
}
encoder_block = re.compile(r"(?:backbone\.)?layers\.(\d{1,4})\.blocks\.(\d{1,4})\.")
WIDTH = re.compile(r"(?:backbone\.)?layers\.(\d{1,4})\.blocks\.\d{1,4}\.pos\.conv\.bias")
MAX_DIFFERENT = 3  # of 8 widths and depths: the nearest variant is meant, and compared strictly
CONV_SEG_CHANNELS = 128  # the default of mmsegmentation's decode heads, in every variant
unused_reasons: Mapping[str, str] = {
    ".num_batches_tracked": "counter of PyTorch's batch norm, read by nothing",
    ".Relpos.angle": "constant, equal to what is computed here",
    ".Relpos.decay": "constant, equal to what is computed here",
    "decode_head.conv_seg.": "layer that the original never calls",
}
constants: Sequence[str] = (".Relpos.",)


def key(path: Path, *, prefix: bool = True) -> str:
    """Return the PyTorch name of the leaf at `path` of a model's parameters or statistics.

    `prefix=False` gives the classifier's names, whose encoder has none.
    """
    *modules, leaf = map(str, path)
    module = "/".join(modules)
    for pattern, name in MODULES:
        module = re.sub(pattern, name, module)
    name = ".".join(part for part in (module, LEAVES[leaf]) if part)
    return name if prefix else name.removeprefix("backbone.")


def from_torch(tensor: np.ndarray, path: Path) -> np.ndarray:
    """Return a PyTorch tensor in the layout of the leaf at `path`."""
    if tensor.ndim == 4:
        if path[-1] in ("gamma1", "gamma2"):
            return tensor.reshape(-1)
        if len(path) > 1 and path[-2] in DEPTHWISE:
            return np.transpose(tensor[:, 0], (1, 2, 0))  # [c, 1, k, k] → [k, k, c]
        if tensor.shape[2:] == (1, 1):
            return tensor[:, :, 0, 0].T  # a 1×1 convolution is a Linear here
        return np.transpose(tensor, (2, 3, 1, 0))  # OIHW → HWIO
    return tensor.T if tensor.ndim == 2 else tensor


def to_torch(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the leaf at `path` in PyTorch's layout; the exact inverse of `from_torch`."""
    if path[-1] in ("gamma1", "gamma2"):
        return array.reshape(1, 1, 1, -1)
    if path[-1] != "kernel":
        return array
    if path[-2] in DEPTHWISE:
        return np.transpose(array, (2, 0, 1))[:, None]  # [k, k, c] → [c, 1, k, k]
    if array.ndim == 4:
        return np.transpose(array, (3, 2, 0, 1))  # HWIO → OIHW
    return array.T[:, :, None, None] if path[-2] in POINTWISE else array.T


def infer(
    tensors: Mapping[str, np.ndarray], model: ModelConfig, given: Collection[str]
) -> dict[str, Any]:
    """Return the fields of ModelConfig and of the settings that names and shapes tell.

    No file contradicts a given `settings.rotary`. Raises InputError for another model.
    """
    variant = _variant(tensors)
    ffn_conv = any(".ffn.dwconv." in name for name in tensors)
    rotary = model.settings.rotary if "settings.rotary" in given else ffn_conv
    encoder = {"variant": variant, "rotary": rotary, "ffn_conv": ffn_conv}
    if not any(name.startswith("decode_head.") for name in tensors):
        token_head = any(name.startswith("aux_head.") for name in tensors)
        return encoder | {"task": "classification", "token_head": token_head}
    own = VARIANTS[variant].decoder_channels
    fuse = tensors.get("decode_head.linear_fuse.conv.weight", np.zeros(()))
    channels = next(iter(fuse.shape), 0) or own
    as_number = "settings.decoder_channels" in given and model.settings.decoder_channels > 0
    return encoder | {
        "task": "segmentation",
        "token_head": False,
        "decoder_channels": channels if as_number or channels != own else 0,
        "zero_branch": any(".zeroLayer." in name for name in tensors),
    }


def _variant(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the variant whose widths and depths are those of the blocks, or nearly."""
    blocks = {(int(m[1]), int(m[2])) for m in map(encoder_block.match, tensors) if m}
    depths = Counter(stage for stage, _ in blocks)
    widths = {int(m[1]): tensors[m[0]].size for m in map(WIDTH.fullmatch, tensors) if m}
    found = [(widths.get(stage, 0), depths[stage]) for stage in sorted(depths)]

    def num_different(name: str) -> int:
        expected = zip(VARIANTS[name].widths, VARIANTS[name].depths, strict=True)
        pairs = zip(expected, found, strict=False)
        return sum((a != c) + (b != d) for (a, b), (c, d) in pairs) + 8 * (len(found) != 4)

    best = min(VARIANTS, key=num_different)
    if num_different(best) <= MAX_DIFFERENT:
        return best
    first = printable(", ".join(list(tensors)[:3]))
    what = f"stages have (width, blocks) {found[:8]}" if found else f"names begin with {first}"
    raise InputError(
        f"is neither SegRet nor an RMT classifier: its {what}. Give a file of {', '.join(VARIANTS)}"
    )


def unused(
    model: ModelConfig, num_classes: int, names: Iterable[str], *, prefix: bool
) -> dict[str, np.ndarray]:
    """Return the tensors that the original has beside those of `names`, at their defaults.

    Angles are 10000^(−j/(d/2−1)), each twice, for head width d; decays as `head_log_decay`.
    """
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        if name.endswith(".running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            tensors[counter] = np.zeros((), np.int64)
    variant = VARIANTS[model.variant]
    stages = zip(variant.widths, variant.heads, variant.decay_spans, strict=True)
    for i, (width, heads, span) in enumerate(stages):
        name = "backbone." * prefix + f"layers.{i}.Relpos"
        angle = np.repeat(10000.0 ** -np.linspace(0, 1, width // heads // 2), 2)
        decay = head_log_decay(heads, span=span)
        tensors[f"{name}.angle"] = angle.astype(np.float32)
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
