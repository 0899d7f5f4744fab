"""Import of the tensors of a PyTorch file as parameters, strict in both directions.

Every tensor of the file is used or dropped for a known reason; every leaf of the model is filled;
shapes agree. One error lists all differences that `allow` does not match.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict

from segret_jax.checkpoint.safetensors import Tensors
from segret_jax.config import ModelConfig
from segret_jax.convert.recognize import TorchModel, identify
from segret_jax.errors import InputError, printable
from segret_jax.models.config import model_name
from segret_jax.models.factory import ModelBundle, abstract, build
from segret_jax.models.family import Path
from segret_jax.trees import leaves_by_path

Faults = dict[str, str]  # by tensor
Patterns = dict[str, re.Pattern]  # by their text
Leaves = dict[str, tuple[Path, tuple[int, ...]]]

CONSTANT_TOLERANCE = 1e-4  # relative
HALF_TOLERANCE = 1e-2  # of constants that were rounded to 16 bits
MAX_NEAREST = 50  # differences for which the nearest name is searched: it is slow
COUNTER = ".num_batches_tracked"
AVERAGING = "counter of the weights' average, read by nothing"
# Single numbers that writers of averaged weights (PyTorch, mmengine, diffusion models) keep.
COUNTERS = {"n_averaged", "steps", "step", "num_updates", "decay", "initted"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A model from a PyTorch file.

    Attributes:
        recognized: The settings of the model.
        bundle: The model, with float32 arrays.
        leaves: Path and PyTorch shape of each leaf, by PyTorch name.
        dropped: Reasons by tensor that was not used.
        initialized: Reasons by leaf that keeps its initial value.
        unused: The dropped tensors that an export needs, as it cannot compute them.
    """

    recognized: TorchModel
    bundle: ModelBundle
    leaves: Leaves
    dropped: dict[str, str]
    initialized: dict[str, str]
    unused: dict[str, np.ndarray]


def import_tensors(
    tensors: Tensors, model: ModelConfig, *, given: Collection[str] = (), allow: Sequence[str] = ()
) -> Imported:
    """Recognize the model of `tensors` and fill it.

    Args:
        tensors: The arrays by PyTorch name.
        model: The settings that no file can tell.
        given: The fields of `model` that the file must agree with.
        allow: Regular expressions, searched in names. A matching tensor may be superfluous and is
            dropped; a matching leaf may lack a fitting tensor and keeps its initial value.

    Raises:
        InputError: The file differs from the model; all differences are listed.
    """
    try:
        patterns = {text: re.compile(text) for text in allow}
    except re.error as error:
        raise InputError(f"--allow {error.pattern!r} is no regular expression: {error}") from None
    found = _recognize(tensors, model, given, patterns)
    bundle = abstract(found.model, found.num_classes)
    leaves = _torch_leaves(found, bundle)
    known, surplus = _split_surplus(tensors, leaves, found)
    missing = {n: f"{list(s)} is missing" for n, (_, s) in leaves.items() if n not in tensors}
    unusable = {n: _fault(tensors[n], s) for n, (_, s) in leaves.items() if n in tensors}
    unusable = {name: fault for name, fault in unusable.items() if fault}
    allowed = _allowed_reasons([*missing, *unusable, *surplus], patterns, known)
    _raise_differences(missing, unusable, surplus, allowed, found)
    initialized = {name: allowed[name] for name in [*missing, *unusable]}
    if initialized:
        bundle = build(found.model, found.num_classes, seed=0)
    trees = (_filled(tree, tensors, found, skip=initialized) for tree in bundle.variables)
    return Imported(
        recognized=found,
        bundle=ModelBundle(bundle.graph, *trees),
        leaves=leaves,
        dropped=known | {name: allowed[name] for name in [*unusable, *surplus]},
        initialized=initialized,
        unused={n: tensors[n] for n in known if _is_kept_for_export(n, tensors[n], found)},
    )


def _allowed_reasons(names: Sequence[str], patterns: Patterns, known: Faults) -> Faults:
    """Return the reason for each difference that a pattern allows.

    A pattern may match tensors that are dropped anyway (`known`); one that matches none is refused.
    """
    allowed: Faults = {}
    for text, pattern in patterns.items():
        matched = list(filter(pattern.search, names))
        if not matched and not any(map(pattern.search, known)):
            raise InputError(
                f"--allow {text!r} fits none of {len(names)} differences; leave it out"
            )
        allowed |= dict.fromkeys(matched, f"accepted by --allow {text!r}")
    return allowed


def _recognize(
    tensors: Tensors, model: ModelConfig, given: Collection[str], patterns: Patterns
) -> TorchModel:
    """Identify the model; if that fails, once more without the tensors that may be dropped."""
    try:
        return identify(tensors, model, given)
    except InputError:
        rest = {n: t for n, t in tensors.items() if not any(p.search(n) for p in patterns.values())}
        if not 0 < len(rest) < len(tensors):
            raise
        return identify(rest, model, given)


def _torch_leaves(found: TorchModel, bundle: ModelBundle) -> Leaves:
    """Return path and PyTorch shape of each parameter and statistic, by PyTorch name."""
    leaves = {}
    for path, leaf in leaves_by_path(*bundle.variables).items():
        name = found.format.key(path, prefix=found.prefix)
        unread = np.broadcast_to(np.float32(0), leaf.shape)
        leaves[name] = path, found.format.to_torch(unread, path).shape
    return leaves


def _filled(tree: Any, tensors: Tensors, found: TorchModel, *, skip: Collection[str]) -> Any:
    """Return `tree` with each leaf, but those to `skip`, from its tensor as float32."""

    def leaf(path: Path, initial: Any) -> np.ndarray:
        name = found.format.key(path, prefix=found.prefix)
        value = initial if name in skip else found.format.from_torch(tensors[name], path)
        return np.ascontiguousarray(value, np.float32)

    return unflatten_dict({path: leaf(path, x) for path, x in leaves_by_path(tree).items()})


def _is_counter(name: str, tensor: np.ndarray) -> bool:
    """Return whether a tensor counts the updates of averaged weights, and is no weight."""
    return name in COUNTERS and tensor.size == 1


def _fault(tensor: np.ndarray, shape: tuple[int, ...]) -> str:
    """Return why `tensor` cannot fill a leaf of `shape`; "" if it can."""
    if tensor.shape != shape:
        turned = " (transposed?)" if tensor.shape == shape[::-1] else ""
        return f"is {list(tensor.shape)}, the model needs {list(shape)}{turned}"
    if tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
        return f"is of type {tensor.dtype}, the model needs floating point"
    if not (np.abs(tensor) <= np.finfo(np.float32).max).all():
        return "has values that are not finite in float32"
    return ""


def _split_surplus(tensors: Tensors, leaves: Leaves, found: TorchModel) -> tuple[Faults, Faults]:
    """Return the tensors that no leaf takes: the known ones to drop, with reasons, and the rest."""
    unused = found.format.unused(found.model, found.num_classes, leaves, prefix=found.prefix)
    reasons = found.format.unused_reasons
    known, surplus = {}, {}
    for name in (name for name in tensors if name not in leaves):
        if _is_counter(name, tensors[name]):
            known[name] = AVERAGING
        elif name not in unused:
            surplus[name] = f"{list(tensors[name].shape)} is not in the model"
        elif fault := _fault_of_unused(name, tensors[name], unused[name], found):
            surplus[name] = fault
        else:
            known[name] = next(reason for part, reason in reasons.items() if part in name)
    return known, surplus


def _fault_of_unused(name: str, tensor: np.ndarray, default: np.ndarray, found: TorchModel) -> str:
    """Return how `tensor` differs from the original's, of which `default` is the value; or ""."""
    if tensor.shape != default.shape:
        return f"is {list(tensor.shape)}, the original's is {list(default.shape)}"
    if COUNTER in name:
        return "is of type bool, the original's is a number" if tensor.dtype == bool else ""
    if not _is_constant(name, found):
        return _fault(tensor, default.shape)
    pair = tensor.astype(np.float64), default.astype(np.float64)
    tolerance = HALF_TOLERANCE if tensor.dtype.itemsize == 2 else CONSTANT_TOLERANCE
    if np.allclose(*pair, rtol=tolerance, atol=0):
        return ""
    theirs, ours = (np.array2string(t[:4], precision=5) for t in pair)
    return f"begins {theirs}, but the original has {ours}: another model"


def _is_constant(name: str, found: TorchModel) -> bool:
    """Return whether a tensor is computed from the model's settings."""
    return any(part in name for part in found.format.constants)


def _is_kept_for_export(name: str, tensor: np.ndarray, found: TorchModel) -> bool:
    """Return whether an export should write a dropped tensor instead of its default.

    16 bits round constants, which are computed again, and overflow a counter. The original has no
    counter of an average.
    """
    if _is_counter(name, tensor):
        return False
    if COUNTER in name:
        return 0 <= tensor.item() < 2**63
    return not _is_constant(name, found) or tensor.dtype.itemsize > 2


def _raise_differences(
    missing: Faults, unusable: Faults, surplus: Faults, allowed: Faults, found: TorchModel
) -> None:
    """Raise InputError with all differences that are not allowed."""
    lines: list[str] = []
    for faults, others in ((missing, surplus), (unusable, {}), (surplus, missing)):
        candidates = [name for name in others if name not in allowed]
        for name in (name for name in faults if name not in allowed):
            near = get_close_matches(name, candidates, n=1) if len(lines) < MAX_NEAREST else []
            line = f"{name} {faults[name]}" + (f"; nearest: {near[0]}" if near else "")
            lines.append(printable(line))
    if lines:
        raise InputError(
            f"differs from {model_name(found.model)} with {found.num_classes} classes in "
            f"{len(lines)} tensors; give a complete file of this model, or --allow REGEX for names "
            "whose tensor may be dropped, or stay at its initial value:\n  " + "\n  ".join(lines)
        )
