"""Which model a PyTorch file holds, by the names and shapes of its tensors.

    SegRet         backbone.…, decode_head.…                plain encoder
    RMT ImageNet   layers.…, proj, norm, head[, aux_head]   with rotary phase and FFN convolutions

A file without `ffn.dwconv` has the plain encoder. Whether q and k are rotated leaves no
trace in a file: the two extras go together in both families, so the one tells of the other.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segret_jax.config import ModelConfig
from segret_jax.convert.metadata import printable
from segret_jax.data.class_table import MOST_CLASSES, STRAY
from segret_jax.errors import InputError
from segret_jax.models.rmt import VARIANTS

BLOCK = re.compile(r"(?:backbone\.)?layers\.(\d{1,4})\.blocks\.(\d{1,4})\.")
WIDTH = re.compile(r"(?:backbone\.)?layers\.(\d{1,4})\.blocks\.\d{1,4}\.pos\.conv\.bias")
IMAGENET_CLASSES = 1000  # of a classifier file that lost its head
MAX_UNLIKE = 3  # of the 8 widths and depths: the nearest variant is meant, and compared strictly


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The model of a file; `prefix` says whether its encoder's names begin with `backbone.`."""

    model: ModelConfig
    num_classes: int
    prefix: bool


def identify(
    tensors: Mapping[str, np.ndarray], model: ModelConfig, given: Collection[str] = ()
) -> Family:
    """Return the family of `tensors`, in the settings of `model` that no file can tell.

    `given` are the fields of `model` that the user set. Raises InputError where the file
    contradicts one of them, or is no model of these families.
    """
    inferred = _infer(tensors)
    if "rotary" in given:
        inferred["rotary"] = model.rotary
    found = dataclasses.replace(model, **inferred)
    asked = {field: getattr(model, field) for field in given if field in inferred}
    held = {field: inferred[field] for field in asked}
    if "decoder_channels" in asked:
        own = VARIANTS[found.variant].decoder_channels  # what 0 stands for
        asked["decoder_channels"] = asked["decoder_channels"] or own
        held["decoder_channels"] = held["decoder_channels"] or own
    wrong = [
        f"model.{field} is set to {asked[field]!r}, but the file holds {held[field]!r}"
        for field in asked
        if asked[field] != held[field]
    ]
    if wrong:
        raise InputError(f"{'; '.join(wrong)}. Leave out what the file tells itself")
    count = _num_classes(tensors, found.task)
    prefix = any(name.startswith("backbone.") for name in tensors)
    return Family(model=found, num_classes=count, prefix=prefix)


def _num_classes(tensors: Mapping[str, np.ndarray], task: str) -> int:
    layers = ("linear_pred", "conv_seg") if task == "segmentation" else ("head", "aux_head")
    prefix = "decode_head." if task == "segmentation" else ""
    names = [f"{prefix}{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    counts = [count for name in names if (count := _length(tensors, name)) is not None]
    if not counts and task == "segmentation":
        raise InputError(f"lacks {names[0]}, which tells the number of classes")
    count = counts[0] if counts else IMAGENET_CLASSES
    most = STRAY if task == "segmentation" else MOST_CLASSES  # label maps have 8 bits
    if not 1 <= count <= most:
        raise InputError(f"has {count} classes; a {task} model of 1 to {most} is read")
    return count


def _infer(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the fields of ModelConfig that names and shapes tell; InputError if they do not."""
    variant = _variant(tensors)
    ffn_conv = any(".ffn.dwconv." in name for name in tensors)
    encoder = {"variant": variant, "rotary": ffn_conv, "ffn_conv": ffn_conv}
    if not any(name.startswith("decode_head.") for name in tensors):
        token_head = any(name.startswith("aux_head.") for name in tensors)
        return encoder | {"task": "classification", "token_head": token_head}
    own = VARIANTS[variant].decoder_channels
    channels = _length(tensors, "decode_head.linear_fuse.conv.weight") or own
    return encoder | {
        "task": "segmentation",
        "token_head": False,
        "decoder_channels": 0 if channels == own else channels,
        "zero_branch": any(".zeroLayer." in name for name in tensors),
    }


def _length(tensors: Mapping[str, np.ndarray], name: str) -> int | None:
    """Return the length of a tensor's first axis, or None if there is no such tensor or axis."""
    return next(iter(tensors[name].shape), None) if name in tensors else None


def _variant(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the variant whose widths and depths are those of the blocks, or nearly."""
    blocks = {(int(m[1]), int(m[2])) for m in map(BLOCK.match, tensors) if m}
    depths = Counter(stage for stage, _ in blocks)
    widths = {int(m[1]): tensors[m[0]].size for m in map(WIDTH.fullmatch, tensors) if m}
    found = [(widths.get(stage, 0), depths[stage]) for stage in sorted(depths)]

    def unlike(name: str) -> int:
        expected = list(zip(VARIANTS[name].widths, VARIANTS[name].depths, strict=True))
        pairs = zip(expected, found, strict=False)
        return sum((a != c) + (b != d) for (a, b), (c, d) in pairs) + 8 * (len(found) != 4)

    best = min(VARIANTS, key=unlike)
    if unlike(best) <= MAX_UNLIKE:
        return best
    first = printable(", ".join(list(tensors)[:3]))
    what = (
        f"its stages have (width, blocks) {found[:8]}" if found else f"its names begin with {first}"
    )
    raise InputError(
        f"is no SegRet and no RMT classifier of the variants {', '.join(VARIANTS)}: {what}; "
        "give a file of one of these models"
    )
