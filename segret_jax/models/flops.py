"""Operations of a model, and the memory of its backward pass; no weight is allocated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from segret_jax.errors import InputError
from segret_jax.models.config import ModelConfig, model_name
from segret_jax.models.families import get_family
from segret_jax.models.family import Size


@dataclass(frozen=True)
class Cost:
    """Operations on one image; sums and multiples are by field."""

    mult_adds: int = 0
    extra: int = 0  # convolution biases, norms and ReLUs, as mmcv counts them
    attention: int = 0  # products of queries, keys and values, retention's

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * getattr(self, f) for f in self.__dataclass_fields__))

    @property
    def layers(self) -> int:
        """The count of mmcv, which the paper gives."""
        return self.mult_adds + self.extra


def operations(config: ModelConfig, num_classes: int, size: Size) -> float:
    """Return the operations of a forward pass over one image, two for each multiply-add.

    Raises InputError for a family that does not count them.
    """
    costs = get_family(config.family).load().costs
    if costs is None:
        raise InputError(f"the operations of {model_name(config)} are not known: set train.steps")
    counts = costs.count(config, num_classes, size).values()
    return 2.0 * sum(part.mult_adds + part.attention for part in counts)


def saved_bytes(f: Callable, params: Any, x: jax.ShapeDtypeStruct) -> int:
    """Return the bytes that `jax.vjp` keeps to differentiate f(params, x) by `params`.

    Only values that depend on `x` count, each once: no parameter, mask or constant.
    """

    def residuals(params: Any, x: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(jax.vjp(lambda params: f(params, x), params)[1])

    jaxpr = jax.make_jaxpr(residuals)(params, x).jaxpr
    of_x = {id(jaxpr.invars[-1])}
    for equation in jaxpr.eqns:
        if any(id(v) in of_x for v in equation.invars):
            of_x.update(map(id, equation.outvars))
    kept = {id(v): v.aval for v in jaxpr.outvars if id(v) in of_x}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())
