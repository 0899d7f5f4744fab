"""The settings of a model: those that every family has, and the family's own. Free of JAX."""

from dataclasses import dataclass, field
from typing import Any

from segret_jax.errors import InputError
from segret_jax.models.families import FAMILIES, get_family
from segret_jax.models.segret.settings import SegRetSettings
from segret_jax.settings import setting


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The network. Defaults are the released SegRet."""

    family: str = setting("segret", "of models", choices=tuple(FAMILIES), shared=True)
    task: str = setting(
        "segmentation", "or classification: an ImageNet classifier, converted",
        choices=("segmentation", "classification"),
    )  # fmt: skip
    variant: str = setting("tiny", "one of the family's", shared=True)
    drop_path: float = setting(-1.0, "of the last block; negative: the variant's own", below=1)
    remat: tuple[int, ...] = setting(
        (), "stages, from 1, computed twice in training: less memory", entry=1,
        minimum=1, maximum=4, may_change=True, scored=False,
    )  # fmt: skip
    kernels: str = setting(
        "auto", "or reference: plain formulas, exportable; they hold all scores",
        choices=("auto", "reference"), may_change=True,
    )  # fmt: skip
    dtype: str = setting(
        "float32", "of the computation; parameters stay float32", choices=("float32", "bfloat16")
    )
    matmul_precision: str = setting(
        "default", "highest for parity on GPU and TPU", choices=("default", "high", "highest")
    )
    settings: Any = field(default_factory=SegRetSettings)  # the family's own: `choose_family`


def choose_family(model: ModelConfig, name: str) -> None:
    """Make `model` one of another family, with the defaults of its own settings."""
    model.family, model.settings = name, get_family(name).settings()


def check_model(model: ModelConfig) -> None:
    """Raise InputError if variant or own settings are not those of the model's family."""
    family = get_family(model.family)
    if type(model.settings) is not family.settings:
        raise InputError(
            f"model.family is {model.family!r}, but model.settings are "
            f"{type(model.settings).__name__}: call choose_family(config.model, {model.family!r})"
        )
    if model.variant not in family.variants:
        known = ", ".join(family.variants)
        raise InputError(f"model.variant is {model.variant!r}; choose one of {known}")


def check_segmentation(model: ModelConfig) -> None:
    """Raise InputError for a classifier: what segments or trains to segment needs a decoder."""
    if model.task != "segmentation":
        raise InputError(
            f"this is the classifier {model_name(model)}, which does not segment: train with its "
            "encoder, by segret train --config.init_from=CHECKPOINT"
        )


def model_name(model: ModelConfig) -> str:
    """Return what to call the model in messages: segret_tiny, or rmt_tiny for the classifier."""
    is_classifier = model.task == "classification"
    family = get_family(model.family).classifier if is_classifier else model.family
    return f"{family}_{model.variant}"
