"""What a model family offers to the rest of the package. Free of JAX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str | int, ...]  # of a leaf in a tree of parameters
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A family by what must be known before JAX is imported; `load` imports the rest."""

    settings: type  # a dataclass, of what other families do not have
    variants: Mapping[str, Any]
    load: Callable[[], "Implementation"]
    classifier: str = ""  # what its ImageNet classifiers are called, before the variant


@dataclass(frozen=True, kw_only=True, eq=False)
class Implementation:
    """A family by what computes; what has a default may be left out.

    `model` in the arguments is a `ModelConfig`.
    """

    build: Callable[..., Any]
    """(model, num_classes, *, platform, rngs) -> nnx.Module: images [b, H, W, 3] to logits, with
    the attribute `stride` (a side of n pixels gives ⌈n/stride⌉ logits) and, for `segret verify`, a
    method `stages(image)` that returns {name: map} of `stages`."""
    stages: Mapping[str, str] = field(default_factory=lambda: {"logits": "the network"})
    """Names of its maps, the logits last: what each comes from."""
    parameter_groups: Mapping[str, tuple[float, bool]] = field(
        default_factory=lambda: {"all": (1.0, True)}
    )
    """Learning rate multiplier, and whether weight decay applies, by group."""
    parameter_group: Callable[[Path], str] = lambda path: "all"
    last_layer: str = "/classify/"
    """What the paths of those parameters hold whose shape depends on the number of classes."""
    costs: "Costs | None" = None
    torch: "TorchFormat | None" = None
    classifier_transfer: "ClassifierTransfer | None" = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """What a model takes, by formula."""

    count: Callable[..., dict[str, Any]]  # (model, num_classes, size) -> {part: cost.Cost}
    parameters: Callable[[Any], dict[str, int]]  # (params) -> {part: number}
    notes: Callable[..., Sequence[str]]  # (model, size, batch) -> lines of `segret summary`
    activation_bytes: Callable[..., float]
    """(model, num_classes, *, on_cpu) -> bytes per input pixel at the peak of a training step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TorchFormat:
    """Names and layouts of the family's PyTorch checkpoints."""

    key: Callable[..., str]  # (path, *, prefix) -> name
    to_torch: Callable[[Any, Path], Any]  # (array, path) -> array in PyTorch's layout
    from_torch: Callable[[Any, Path], Any]
    infer: Callable[..., dict[str, Any]]
    """(tensors by name, model, given) -> fields of ModelConfig and of the settings.

    `given` names those of `model` that the user set. InputError: a model of another family."""
    class_layers: Mapping[str, Sequence[str]]  # by task: layers with an output for each class
    unused: Callable[..., dict[str, Any]]
    """(model, num_classes, names, *, prefix) -> what the original holds beside, at its defaults."""
    unused_reasons: Mapping[str, str]  # by a part of the name
    check_export: Callable[[Any], None]  # (model); InputError where a file could not tell it
    describe: Callable[[Any], list[str]]  # (model) -> sentences for the report


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierTransfer:
    """What training takes from an ImageNet classifier of the family."""

    may_differ: Callable[[Any], Sequence[str]]  # (model) -> settings that need not agree
    takes: Callable[[str, Any], bool]  # (name of a tensor, model)
    lost: Callable[[Any, Any], dict[str, str]]  # (theirs, ours) -> {setting that keeps it: part}
