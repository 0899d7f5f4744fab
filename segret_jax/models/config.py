"""Settings of a model: those of every family, and the family's own. Free of JAX."""

from dataclasses import dataclass, field
from typing import Any

from segret_jax.errors import InputError
from segret_jax.models.families import FAMILIES, get_family
from segret_jax.models.segret.settings import SegRetSettings
from segret_jax.settings import setting


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """Settings of the network. Defaults are the released SegRet."""

    family: str = setting("segret", choices=tuple(FAMILIES), shared=True)
    """The model family (models/families.py)."""
    task: str = setting("segmentation", choices=("segmentation", "classification"))
    """segmentation; classification is a converted ImageNet classifier."""
    variant: str = setting("tiny", shared=True)
    """One of the family's variants."""
    drop_path: float = setting(-1.0, below=1)
    """Drop path rate of the last block; negative: the variant's own."""
    remat: tuple[int, ...] = setting((), entry=1, minimum=1, may_change=True, scored=False)
    """Stages, from 1, whose blocks the backward pass recomputes, to save memory on GPUs and
    TPUs."""
    kernels: str = setting("auto", choices=("auto", "reference"), may_change=True)
    """auto: the fastest kernels; reference: plain formulas, exportable, which hold all scores and
    states."""
    dtype: str = setting("float32", choices=("float32", "bfloat16"))
    """The dtype of the computation; parameters stay float32."""
    matmul_precision: str = setting("default", choices=("default", "high", "highest"))
    """Precision of matrix products; highest for parity with PyTorch on GPU and TPU."""
    settings: Any = field(default_factory=SegRetSettings)
    """The family's own settings (`choose_family`)."""


def choose_family(model: ModelConfig, name: str) -> None:
    """Set the family of a model, with the default settings of that family.

    Args:
        model: The settings of the model, which are changed.
        name: The name of the family.

    Raises:
        InputError: There is no such family.
    """
    model.family, model.settings = name, get_family(name).settings()


def check_model(model: ModelConfig) -> None:
    """Raise InputError if variant, settings, task or stages are not those of the family."""
    family = get_family(model.family)
    name, count, settings = model.family, family.num_remat_stages, type(model.settings)
    if settings is not family.settings:
        remedy = f"call choose_family(config.model, {name!r})"
        raise InputError(f"model.settings are {settings.__name__}, of another family: {remedy}")
    if model.variant not in family.variants:
        known = ", ".join(family.variants)
        raise InputError(f"model.variant is {model.variant!r}; choose one of {known}")
    if model.task == "classification" and not family.classifier:
        raise InputError(f"model.task is 'classification', but {name} has none: leave it out")
    if any(stage > count for stage in model.remat):
        remedy = f"give stages from 1 to {count}" if count else "leave it out"
        raise InputError(f"model.remat is {model.remat}, but {name} has {count} stages: {remedy}")


def check_segmentation(model: ModelConfig) -> None:
    """Raise InputError for a classifier, which has no decoder."""
    if model.task != "segmentation":
        fault = f"this is the classifier {model_name(model)}, which does not segment"
        raise InputError(f"{fault}: segret train --config.init_from=CHECKPOINT takes its encoder")


def model_name(model: ModelConfig) -> str:
    """Return the model's name for messages: segret_tiny, or rmt_tiny for the classifier."""
    segments = model.task == "segmentation"
    family = model.family if segments else get_family(model.family).classifier
    return f"{family}_{model.variant}"
