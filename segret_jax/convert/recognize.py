"""Recognition of the model in a PyTorch file by the names and shapes of its tensors."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from segret_jax.checkpoint.safetensors import Tensors
from segret_jax.data.class_table import MAX_CLASSES, UNKNOWN
from segret_jax.errors import InputError, printable
from segret_jax.models.config import ModelConfig, choose_family
from segret_jax.models.families import FAMILIES, get_family
from segret_jax.models.family import TorchFormat

IMAGENET_CLASSES = 1000  # of a classifier file that lost its head


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """The model of a file; `prefix` says whether its encoder's names begin with `backbone.`."""

    model: ModelConfig
    num_classes: int
    prefix: bool

    @property
    def format(self) -> TorchFormat:
        """Names and layouts of the family's tensors."""
        return torch_format(self.model)


def torch_format(model: ModelConfig) -> TorchFormat:
    """Return how a family's tensors are named; InputError if it has no PyTorch files."""
    found = get_family(model.family).load().torch
    if found is None:
        raise InputError(f"the family {model.family} has no PyTorch checkpoints")
    return found


def identify(tensors: Tensors, model: ModelConfig, given: Collection[str] = ()) -> TorchModel:
    """Return the model of `tensors`.

    Args:
        tensors: The arrays by PyTorch name.
        model: The settings that no file can tell.
        given: The settings of `model` that the user set, such as "variant" or "settings.decay".

    Returns:
        The model, with settings of its own.

    Raises:
        InputError: The file contradicts a setting of `given`, or holds no model of any family.
    """
    found, inferred = _infer(tensors, model, given)
    wrong = []
    for name, value in inferred.items():
        is_shared = hasattr(found, name)
        group, key = (found, name) if is_shared else (found.settings, f"settings.{name}")
        asked = getattr(group, name)
        if key not in given:
            setattr(group, name, value)
        elif asked != value:
            wrong.append(f"model.{key} is set to {asked!r}, but the file holds {value!r}")
    if wrong:
        raise InputError(f"{'; '.join(wrong)}. Leave out what the file tells itself")
    count = _num_classes(tensors, found)
    prefix = any(name.startswith("backbone.") for name in tensors)
    return TorchModel(model=found, num_classes=count, prefix=prefix)


def _infer(
    tensors: Tensors, model: ModelConfig, given: Collection[str]
) -> tuple[ModelConfig, dict[str, Any]]:
    """Return a copy of `model` that is of the file's family, and the inferred settings.

    The configured family is tried first, and alone if the user named it or one of its settings.
    """
    is_named = any(key == "family" or key.startswith("settings.") for key in given)
    names = [model.family, *(name for name in FAMILIES if name != model.family and not is_named)]
    for name in names:
        found = dataclasses.replace(model, settings=dataclasses.replace(model.settings))
        if name != model.family:
            choose_family(found, name)
        form = get_family(name).load().torch
        if form is not None and (inferred := form.infer(tensors, found, given)) is not None:
            return found, inferred
    first = printable(", ".join(list(tensors)[:3]))
    remedy = "Give a file of " + ("that family" if is_named else "one of these families")
    raise InputError(f"is no model of {' or '.join(names)}: its names begin with {first}. {remedy}")


def _num_classes(tensors: Tensors, model: ModelConfig) -> int:
    layers, is_segmentation = torch_format(model).class_layers, model.task == "segmentation"
    names = [f"{layer}.{leaf}" for layer in layers[model.task] for leaf in ("weight", "bias")]
    counts = [tensors[name].shape[0] for name in names if name in tensors and tensors[name].ndim]
    if not counts and is_segmentation:
        raise InputError(f"lacks {names[0]}, which tells the number of classes: save it again")
    count = counts[0] if counts else IMAGENET_CLASSES
    most = UNKNOWN if is_segmentation else MAX_CLASSES  # label maps have 8 bits
    if not 1 <= count <= most:
        raise InputError(f"has {count} classes, but a {model.task} model has 1 to {most}")
    return count
