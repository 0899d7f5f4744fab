"""SegMAN's `Implementation`: what the rest of the package uses."""

from flax import nnx

from segret_jax.models.config import ModelConfig
from segret_jax.models.family import Implementation, Path
from segret_jax.models.kernels import Platform
from segret_jax.models.segman import classifier, costs, torch_format
from segret_jax.models.segman.classifier import Classifier
from segret_jax.models.segman.model import SegMAN
from segret_jax.models.segman.variants import STAGES

SOURCES = (
    "the stem or stage 1 (encoder/stem, encoder/stages/0)",
    "stage 2 or the downsample before it (encoder/stages/1, encoder/downsamples/0)",
    "stage 3 or the downsample before it (encoder/stages/2, encoder/downsamples/1)",
    "stage 4 or the downsample before it (encoder/stages/3, encoder/downsamples/2)",
    "what follows the encoder (decoder; of a classifier proj, norm, head)",
)
BLOCK_NORMS = {"norm1", "norm2", "norm"}  # of blocks; "norm" also of their mixers


def build(
    model: ModelConfig, num_classes: int, *, platform: Platform, rngs: nnx.Rngs
) -> SegMAN | Classifier:
    """Return a model with initial weights."""
    network = SegMAN if model.task == "segmentation" else Classifier
    return network(model, num_classes, platform=platform, rngs=rngs)


def parameter_group(path: Path) -> str:
    """Return the group of a parameter by the rules of the released code.

    The released optimizer goes by names: the batch norms have none with "norm" in it.
    """
    modules = set(map(str, path))
    if path[0] != "encoder":
        return "decoder"
    return "encoder_norms" if "stages" in modules and modules & BLOCK_NORMS else "encoder"


IMPLEMENTATION = Implementation(
    build=build,
    stages=dict(zip(STAGES, SOURCES, strict=True)),
    parameter_groups={
        "decoder": (10.0, True), "encoder_norms": (1.0, False), "encoder": (1.0, True),
    },
    parameter_group=parameter_group,
    last_layer="/decoder/classify/",
    costs=costs,
    torch=torch_format,
    classifier_transfer=classifier,
)  # fmt: skip
