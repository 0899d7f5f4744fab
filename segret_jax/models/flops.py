"""Operations of a model, and the memory of its backward pass; no weight is allocated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from segret_jax.models.config import ModelConfig
from segret_jax.models.factory import abstract
from segret_jax.models.families import get_family
from segret_jax.models.family import Size
from segret_jax.models.forward import forward

PARTS = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "decoder")  # of a model


@dataclass(frozen=True)
class Cost:
    """Operations on one image; sums and multiples are by field."""

    mult_adds: int = 0
    elementwise: int = 0  # such as norms, as the count of the published figures has them
    attention: int = 0  # products of queries with keys, and of scores with values

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * getattr(self, f) for f in self.__dataclass_fields__))


def operations(config: ModelConfig, num_classes: int, size: Size) -> float:
    """Return the operations of a forward pass over one image, two for each multiply-add.

    XLA counts them for a family that has no formula.
    """
    costs = get_family(config.family).load().costs
    if costs is None:
        graph, *variables = abstract(config, num_classes)
        image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        program = jax.jit(lambda *arguments: forward(graph, *arguments))
        return float(program.lower(variables, image).cost_analysis()["flops"])  # type: ignore[index]
    counts = costs.count(config, num_classes, size).values()
    return 2.0 * sum(part.mult_adds + part.attention for part in counts)


def stage_sizes(size: Size) -> list[Size]:
    """Return the sizes of the maps of an encoder's four stages; every halving rounds up."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]


def count_parameters(params: Any) -> dict[str, int]:
    """Return {part: number of parameters} of `PARTS`, of a model's nested dict."""
    encoder = params["encoder"]
    trees = [encoder["stem"]]
    trees += [(blocks, encoder["downsamples"].get(i)) for i, blocks in encoder["stages"].items()]
    trees += [params["decoder"]]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]
    return dict(zip(PARTS, sizes, strict=True))


def saved_bytes(f: Callable, params: Any, x: jax.ShapeDtypeStruct) -> int:
    """Return the bytes that `jax.vjp` keeps to differentiate f(params, x) by `params`.

    Only values that depend on `x` count, each once: no parameter, mask or constant.
    """

    def residuals(params: Any, x: jax.Array) -> list[Any]:  # recomputed blocks keep constants
        return jax.tree.leaves(jax.vjp(lambda params: f(params, x), params)[1])

    jaxpr = jax.make_jaxpr(residuals)(params, x).jaxpr
    of_x = {id(jaxpr.invars[-1])}
    for equation in jaxpr.eqns:
        if any(id(v) in of_x for v in equation.invars):
            of_x.update(map(id, equation.outvars))
    kept = {id(v): v.aval for v in jaxpr.outvars if id(v) in of_x}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())
