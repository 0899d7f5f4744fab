"""SegRet's `Implementation`: what the rest of the package uses."""

from flax import nnx

from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Implementation, Path
from segret_jax.models.kernels import Platform
from segret_jax.models.segret import classifier, costs, torch_format
from segret_jax.models.segret.classifier import Classifier
from segret_jax.models.segret.model import SegRet
from segret_jax.models.segret.variants import STAGES

SOURCES = (
    "the stem or stage 1 (encoder/stem, encoder/stages/0)",
    "stage 2 or the downsample before it (encoder/stages/1, encoder/downsamples/0)",
    "stage 3 or the downsample before it (encoder/stages/2, encoder/downsamples/1)",
    "stage 4 or the downsample before it (encoder/stages/3, encoder/downsamples/2)",
    "what follows the encoder (decoder; of a classifier proj, norm, head, aux_head)",
)
ENCODER_NORMS = {"norm", "norms", "norm1", "norm2"}  # stem, downsample and block norms
DECODER_NORMS = {"zero_norm", "fuse_norm"}


def build(
    model: ModelConfig, num_classes: int, *, platform: Platform, rngs: nnx.Rngs
) -> SegRet | Classifier:
    """Return a model with initial weights."""
    network = SegRet if model.task == "segmentation" else Classifier
    return network(model, num_classes, platform=platform, rngs=rngs)


def parameter_group(path: Path) -> str:
    """Return the group of a parameter by the rules of the released code."""
    modules = set(map(str, path))
    if path[0] == "encoder" and modules & ENCODER_NORMS:
        return "encoder_norms"
    return "decoder_norms" if modules & DECODER_NORMS else "others"


IMPLEMENTATION = Implementation(
    build=build,
    stages=dict(zip(STAGES, SOURCES, strict=True)),
    parameter_groups={
        "encoder_norms": (0.1, False), "decoder_norms": (1.0, False), "others": (1.0, True),
    },
    parameter_group=parameter_group,
    last_layer="/decoder/classify/",
    costs=costs,
    torch=torch_format,
    classifier_transfer=classifier,
)  # fmt: skip
