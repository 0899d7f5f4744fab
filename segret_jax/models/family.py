"""The interface of a model family to the rest of the package. Free of JAX."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from segret_jax.errors import InputError

Path = tuple[str | int, ...]  # of a leaf in a tree of parameters
Size = tuple[int, int]  # height, width
# Of weights that do not say what their classes are: the dataset, by the number of classes.
DATASETS_BY_COUNT = {150: "ade20k", 19: "cityscapes", 171: "coco_stuff10k", 11: "camvid"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """The part of a family that is known before JAX is imported; `load` imports the rest."""

    settings: type
    """A dataclass of the family's own settings."""
    variants: Mapping[str, Any]
    load: Callable[[], "Implementation"]
    num_remat_stages: int = 0
    """The stages that `model.remat` may name, from 1."""
    classifier: str = ""
    """The name of its ImageNet classifiers, before the variant; "" if it has none."""
    multiple_of: int = 1
    """Each side of an input is a multiple of this number of pixels."""
    min_side: int = 1
    """Each side of an input has at least this number of pixels."""
    datasets: Mapping[int, str] = field(default_factory=lambda: DATASETS_BY_COUNT)
    """{number of classes: the dataset that released weights with so many are for}."""
    min_batch: int = 1
    """Images in a training batch, or in each part of an accumulated batch, at least."""

    def admissible(self, side: int) -> int:
        """Return the smallest admissible side of an input that has at least `side` pixels."""
        return -(-max(side, self.min_side) // self.multiple_of) * self.multiple_of

    def check_size(self, name: str, size: Size) -> None:
        """Raise InputError unless an input may have this size.

        Args:
            name: The name of the size in the message, such as "data.crop".
            size: Height and width.

        Raises:
            InputError: A side is too short, or not a multiple of `multiple_of`.
        """
        admitted = self.admissible(size[0]), self.admissible(size[1])
        if admitted != tuple(size):
            rule = f"takes multiples of {self.multiple_of} from {self.admissible(1)} on"
            raise InputError(f"{name} is {tuple(size)}, but the model {rule}: give {admitted}")

    def check_settings(self, config: Any) -> None:
        """Raise InputError for settings that do not fit the family.

        Args:
            config: The `Config`; a crop or a batch size of 0 is left open.

        Raises:
            InputError: Crops, windows, `eval.multiple_of` or the batch size do not fit.
        """
        if all(config.data.crop):
            self.check_size("data.crop", config.data.crop)
        self.check_size("eval.window", config.eval.window)
        if (multiple := config.eval.multiple_of) % self.multiple_of:
            remedy = f"give a multiple of {self.multiple_of}, as the model needs"
            raise InputError(f"eval.multiple_of is {multiple}: {remedy}")
        batch, parts = config.train.batch_size, config.train.accumulate
        if 0 < batch < (least := self.min_batch * parts):
            found = f"train.batch_size is {batch} and train.accumulate is {parts}"
            rule = f"trains on {self.min_batch} images or more at once"
            remedy = f"give train.batch_size={least} or more"
            remedy += ", or a smaller train.accumulate" * (parts > 1)
            raise InputError(f"{found}, but the model {rule}: {remedy}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Implementation:
    """The computing part of a family; fields with a default may be left out.

    `model` in the arguments is a `ModelConfig`.
    """

    build: Callable[..., Any]
    """(model, num_classes, *, platform, rngs) -> nnx.Module: images [b, H, W, 3] to logits, with
    the attribute `stride` (a side of n pixels gives ⌈n/stride⌉ logits) and, for `segret verify`, a
    method `stages(image)` that returns {name: map} of `stages`. If its attribute `takes_size` is
    true, prediction pads images and gives it their true (height, width) as `size=`; within that its
    logits are those of the unpadded image."""
    stages: Mapping[str, str] = field(default_factory=lambda: {"logits": "the network"})
    """{name of a map: the modules that it comes from}, the logits last."""
    parameter_groups: Mapping[str, tuple[float, bool]] = field(
        default_factory=lambda: {"kernels": (1.0, True), "others": (1.0, False)}
    )
    """{group: (learning rate multiplier, whether weight decay applies)}."""
    parameter_group: Callable[[Path], str] = lambda p: "kernels" if p[-1] == "kernel" else "others"
    last_layer: str = "/classify/"
    """Part of the paths of those parameters whose shape depends on the number of classes."""
    costs: "Costs | None" = None
    torch: "TorchFormat | None" = None
    classifier_transfer: "ClassifierTransfer | None" = None


@runtime_checkable
class Costs(Protocol):
    """Operations, parameters and memory of a model, by formula; a module may implement it.

    Without it, operations are XLA's count, and training starts without a forecast of its memory.
    """

    def count(self, config: Any, num_classes: int, size: Size) -> dict[str, Any]:
        """Return {part: `flops.Cost`} of one image."""

    def count_parameters(self, params: Any) -> dict[str, int]:
        """Return {part: number of parameters}."""

    def notes(self, config: Any, size: Size, *, batch: int, total: Any) -> str:
        """Return text for `segret summary`; `total` is the `Cost` of the batch."""

    def activation_bytes(self, config: Any, num_classes: int, *, on_cpu: bool) -> float:
        """Return the bytes per input pixel at the peak of a training step."""


@runtime_checkable
class TorchFormat(Protocol):
    """Names and layouts of the family's PyTorch checkpoints; a module may implement it."""

    class_layers: Mapping[str, Sequence[str]]
    """{task: layers with an output for each class}."""
    unused_reasons: Mapping[str, str]
    """{part of a name: why such a tensor is not read}."""
    constants: Sequence[str]
    """Parts of the names of unused tensors whose values must be those that `unused` returns."""
    encoder_block: re.Pattern[str]
    """Matches the beginning of the names of the encoder's blocks, as the original has them."""

    def key(self, path: Path, *, prefix: bool) -> str:
        """Return the PyTorch name of the leaf at `path`."""

    def to_torch(self, array: Any, path: Path) -> Any:
        """Return the leaf at `path` in PyTorch's layout."""

    def from_torch(self, tensor: Any, path: Path) -> Any:
        """Return a PyTorch tensor in the layout of the leaf at `path`."""

    def infer(
        self, tensors: Mapping[str, Any], model: Any, given: Collection[str]
    ) -> dict[str, Any] | None:
        """Return the fields of ModelConfig and of the settings that `tensors` tell.

        None for tensors of another family. `given` names the settings of `model` that the user
        set. Raises InputError for tensors of no variant.
        """

    def unused(
        self, model: Any, num_classes: int, names: Iterable[str], *, prefix: bool
    ) -> dict[str, Any]:
        """Return the tensors that the original has beside those of `names`, at their defaults."""

    def check_export(self, model: Any) -> None:
        """Raise InputError for a model that no PyTorch file can describe."""

    def describe(self, model: Any) -> list[str]:
        """Return sentences about the model, for the report of a conversion."""


@runtime_checkable
class ClassifierTransfer(Protocol):
    """What training takes from an ImageNet classifier; a module may implement it."""

    def may_differ(self, model: Any) -> Sequence[str]:
        """Return the settings of `model` in which the classifier may differ."""

    def takes(self, name: str, model: Any) -> bool:
        """Return whether `model` starts from the tensor of this name."""

    def lost(self, theirs: Any, ours: Any) -> dict[str, str]:
        """Return {setting whose value in `theirs` keeps it: part} for parts that `ours` lacks."""
