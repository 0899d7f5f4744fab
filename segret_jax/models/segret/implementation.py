"""SegRet as the rest of the package sees it."""

from typing import Any

from flax import nnx

from segret_jax.models.config import ModelConfig
from segret_jax.models.family import (
    ClassifierTransfer,
    Costs,
    Implementation,
    Path,
    TorchFormat,
)
from segret_jax.models.kernels import Platform
from segret_jax.models.segret import costs, torch_format
from segret_jax.models.segret.classifier import Classifier
from segret_jax.models.segret.model import SegRet, encoder_options
from segret_jax.models.segret.variants import STAGES, VARIANTS

SOURCES = (
    "the stem or stage 1 (encoder/stem, encoder/stages/0)",
    "stage 2 or the downsample before it (encoder/stages/1, encoder/downsamples/0)",
    "stage 3 or the downsample before it (encoder/stages/2, encoder/downsamples/1)",
    "stage 4 or the downsample before it (encoder/stages/3, encoder/downsamples/2)",
    "what follows the encoder (decoder; of a classifier proj, norm, head, aux_head)",
)
ENCODER_NORMS = {"norm", "norms", "norm1", "norm2"}  # stem, downsample and block norms
DECODER_NORMS = {"zero_norm", "fuse_norm"}
EXTRAS = {"rotary": "the rotation of queries and keys", "ffn_conv": "the FFN's convolutions"}


def build(
    model: ModelConfig, num_classes: int, *, platform: Platform, rngs: nnx.Rngs
) -> SegRet | Classifier:
    """Return a model with initial weights."""
    if model.task == "segmentation":
        return SegRet(model, num_classes, platform=platform, rngs=rngs)
    return Classifier(
        VARIANTS[model.variant],
        num_classes=num_classes,
        token_head=model.settings.token_head,
        options=encoder_options(model, platform),
        matmul_precision=model.matmul_precision,
        rngs=rngs,
    )


def parameter_group(path: Path) -> str:
    """Return the group of a parameter, as the released code's rules divide them."""
    modules = set(map(str, path))
    if path[0] == "encoder" and modules & ENCODER_NORMS:
        return "encoder_norms"
    return "decoder_norms" if modules & DECODER_NORMS else "others"


def _left_out(model: ModelConfig) -> list[str]:
    """Return the settings of what SegRet's plain encoder leaves out of the classifier's."""
    return [key for key in EXTRAS if not getattr(model.settings, key)]


def _may_differ(model: ModelConfig) -> list[str]:
    return ["zero_branch", *_left_out(model)]


def _takes(name: str, model: ModelConfig) -> bool:
    return "/encoder/" in name and (model.settings.ffn_conv or "/ffn/dwconv/" not in name)


def _lost(theirs: ModelConfig, ours: ModelConfig) -> dict[str, Any]:
    return {key: EXTRAS[key] for key in _left_out(ours) if getattr(theirs.settings, key)}


IMPLEMENTATION = Implementation(
    build=build,
    stages=dict(zip(STAGES, SOURCES, strict=True)),
    parameter_groups={
        "encoder_norms": (0.1, False), "decoder_norms": (1.0, False), "others": (1.0, True),
    },
    parameter_group=parameter_group,
    last_layer="/decoder/classify/",
    costs=Costs(
        count=costs.count,
        parameters=costs.count_parameters,
        notes=costs.notes,
        activation_bytes=costs.activation_bytes,
    ),
    torch=TorchFormat(
        key=torch_format.key,
        to_torch=torch_format.to_torch,
        from_torch=torch_format.from_torch,
        infer=torch_format.infer,
        class_layers=torch_format.CLASS_LAYERS,
        unused=torch_format.unused,
        unused_reasons=torch_format.UNUSED_REASONS,
        check_export=torch_format.check_export,
        describe=torch_format.describe,
    ),
    classifier_transfer=ClassifierTransfer(may_differ=_may_differ, takes=_takes, lost=_lost),
)  # fmt: skip
