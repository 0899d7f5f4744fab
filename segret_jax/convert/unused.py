"""What the PyTorch models hold beside our leaves: constants, counters, a layer never called.

Dropped on the way in, given back on the way out, so that the original loads a file strictly.
"""

from collections.abc import Iterable

import numpy as np

from segret_jax.convert.family import Family
from segret_jax.models.decay import head_log_decay
from segret_jax.models.rmt import VARIANTS

CONV_SEG_CHANNELS = 128  # the default of mmsegmentation's decode heads, in every variant

UNUSED = {  # part of the name: why no model here has it
    ".num_batches_tracked": "counter of PyTorch's batch norm, read by nothing",
    ".Relpos.angle": "constant, equal to what is computed here",
    ".Relpos.decay": "constant, equal to what is computed here",
    "decode_head.conv_seg.": "layer that the original never calls",
}

AVERAGING = "counter of the weights' average, read by nothing"
COUNTERS = {  # single numbers that writers of averaged weights keep beside them
    "n_averaged",  # torch.optim.swa_utils.AveragedModel
    "steps",  # mmengine
    "step", "num_updates", "decay", "initted",  # other averages, as of diffusion models
}  # fmt: skip


def is_counter(name: str, tensor: np.ndarray) -> bool:
    """Return whether a tensor counts the updates of averaged weights, and is no weight."""
    return name in COUNTERS and tensor.size == 1


def unused_tensors(family: Family, leaves: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the tensors that the original has beside `leaves` (PyTorch names), at their defaults.

    Angles are 10000^(−j/(d/2−1)), each twice, for head width d; decays as `head_log_decay`.
    """
    tensors: dict[str, np.ndarray] = {}
    for name in leaves:
        if name.endswith(".running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            tensors[counter] = np.zeros((), np.int64)
    variant = VARIANTS[family.model.variant]
    stages = zip(variant.widths, variant.heads, variant.decay_spans, strict=True)
    for i, (width, heads, span) in enumerate(stages):
        name = "backbone." * family.prefix + f"layers.{i}.Relpos"
        angle = np.repeat(10000.0 ** -np.linspace(0, 1, width // heads // 2), 2)
        decay = head_log_decay(heads, initial=variant.decay_initial, span=span)
        tensors[f"{name}.angle"] = angle.astype(np.float32)
        tensors[f"{name}.decay"] = np.array(decay, np.float32)
    if family.model.task == "segmentation":
        shape = (family.num_classes, CONV_SEG_CHANNELS, 1, 1)
        tensors["decode_head.conv_seg.weight"] = np.zeros(shape, np.float32)
        tensors["decode_head.conv_seg.bias"] = np.zeros(shape[0], np.float32)
    return tensors
