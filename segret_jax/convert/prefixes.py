"""Prefixes that wrappers put before the names of a state dict: they are not of the model."""

import re
from collections.abc import Mapping
from typing import TypeVar

from segret_jax.errors import InputError

Value = TypeVar("Value")

WRAPPERS = {  # attributes under which a wrapper holds its module
    "module",  # DataParallel, DistributedDataParallel, AveragedModel, timm's and mmengine's EMA
    "_orig_mod",  # torch.compile
    "model",  # many users' own class, as of Lightning
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning Fabric
}
ENCODER = re.compile(r"((?:[^.]+\.)*?)(?:backbone\.)?layers\.\d{1,4}\.blocks\.\d{1,4}\.")


def without_wrappers(name: str) -> str:
    """Return a tensor's name without the wrappers' attributes, wherever they stand in it.

    No model here has a module of such a name, so nothing else is cut off.
    """
    *modules, leaf = name.split(".")
    return ".".join([part for part in modules if part not in WRAPPERS] + [leaf])


def cut_prefixes(tensors: Mapping[str, Value]) -> tuple[dict[str, Value], str]:
    """Return the tensors by the model's own names, and what was cut off the first in front.

    Beside the wrappers' attributes that is whatever all names of encoder blocks begin with, such as
    `net.`; other tensors keep their names, so that a counter beside them changes nothing.

    Raises InputError if two tensors get one name: they are of two models.
    """
    names = {name: without_wrappers(name) for name in tensors}
    owners = {match[1] for match in map(ENCODER.match, names.values()) if match}
    owner = owners.pop() if len(owners) == 1 else ""
    taken: dict[str, str] = {}
    for name in tensors:
        cut = names[name].removeprefix(owner)
        if cut in taken:
            raise InputError(
                f"holds {taken[cut]!r} and {name!r}, which are two models in one state dict; "
                "save the state dict of one of them"
            )
        taken[cut] = name
    changed = ((cut, name) for cut, name in taken.items() if cut != name and name.endswith(cut))
    cut, name = next(changed, ("", ""))
    return {short: tensors[name] for short, name in taken.items()}, name.removesuffix(cut)
