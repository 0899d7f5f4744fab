"""Find the tensors of a computation that stop being finite, one operation at a time.

The traced function (a jaxpr) is evaluated operation by operation and each result is checked. This
is slow and exact: nothing is fused or left out. An infinity that comes from an infinite input is
not reported, because masks contain them; neither is a nan that is only moved, such as the one of
`jnp.where(valid, x, nan)`.
"""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# Operations that contain a program to look into.
CALLS = {"jit", "checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call"}
# Operations that move numbers and change none.
MOVES = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice",
    "expand_dims", "optimization_barrier", "reshape", "select_n", "slice", "split", "squeeze",
    "transpose", "xla_metadata_value",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A tensor with infinities made of finite inputs, or with nans made of anything."""

    scope: str  # such as encoder/stage3/block2/retention
    is_backward: bool
    operation: str
    where: str  # file and line
    result: str  # dtype and shape
    num_nan: int
    num_inf: int
    inputs: tuple[str, ...]  # dtype, shape and largest magnitude of each

    def __str__(self) -> str:
        direction = "backward" if self.is_backward else "forward"
        counts = f"{self.num_nan} nan, {self.num_inf} infinite"
        return (
            f"{self.scope or 'the step'} ({direction}): {self.operation} gives {self.result} with "
            f"{counts}\n    at {self.where}\n    of {'; '.join(self.inputs)}"
        )


class _Call(NamedTuple):
    """Where an operation is called."""

    scope: str
    line: str
    given: set[int]  # ids of the outermost arguments: infinities in these are not meant


Results = Generator[Fault, None, list[Any]]  # yields faults, returns results


def nonfinite(function: Callable, *args: Any, most: int = 5) -> list[Fault]:
    """Evaluate `function(*args)`; return where its tensors stop being finite, in program order.

    Args:
        function: A function that JAX can trace.
        *args: Trees of arrays, which are not checked themselves.
        most: The number of faults after which the search ends.

    Returns:
        The faults up to the first with a nan. Those before it are infinite, which may do no harm
        (exp(-inf) = 0).
    """
    program, leaves = jax.make_jaxpr(function)(*args), jax.tree.leaves(args)
    faults = []
    for fault in _run(program, leaves, _Call("", "", {*map(id, leaves)})):
        faults.append(fault)
        if fault.num_nan or len(faults) == most:
            break
    return faults


def _run(program: ClosedJaxpr | Jaxpr, args: Sequence[Any], call: _Call) -> Results:
    """Evaluate a program that is called in `call`."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    last_use = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if isinstance(v, Var)}
    last_use |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, Var)}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for i, eqn in enumerate(jaxpr.eqns):
        results = yield from _apply(eqn, [read(v) for v in eqn.invars], call)
        values |= dict(zip(eqn.outvars, results, strict=True))
        for v in {v for v in eqn.invars if isinstance(v, Var) and last_use[v] == i}:
            del values[v]  # a large model would not fit with all of them
    return [read(v) for v in jaxpr.outvars]


def _apply(eqn: JaxprEqn, inputs: list[Any], call: _Call) -> Results:
    name, params = eqn.primitive.name, eqn.params
    scope = f"{call.scope}/{eqn.source_info.name_stack}"
    call = _Call(scope, _line(eqn) or call.line, call.given)
    if name in CALLS:
        called = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return (yield from _run(called, inputs, call))
    if name == "scan":
        return (yield from _scan(params, inputs, call))
    if name == "cond":  # of the model's: one branch for each kind of backend
        return (yield from _run(params["branches"][int(inputs[0])], inputs[1:], call))
    out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
    results = out if eqn.primitive.multiple_results else [out]
    for array in results:
        if _is_finite(array):
            continue
        num_nan, num_inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        of_finite = all(id(x) in call.given or _is_finite(x) for x in inputs)
        if of_finite or (num_nan and name not in MOVES):
            kind, *kinds = (f"{x.dtype}{list(x.shape)}" for x in map(np.asarray, (array, *inputs)))
            largest = (np.abs(np.asarray(x, np.float64)).max(initial=0) for x in inputs)
            operands = tuple(f"{k} up to {x:.3g}" for k, x in zip(kinds, largest, strict=True))
            path, where = _plain(scope), call.line or "an unknown line"
            yield Fault(path, "transpose(" in scope, name, where, kind, num_nan, num_inf, operands)
    return results


def _scan(params: dict[str, Any], inputs: list[Any], call: _Call) -> Results:
    num_fixed, num_carry = params["num_consts"], params["num_carry"]
    step = -1 if params["reverse"] else 1
    fixed, carry = inputs[:num_fixed], inputs[num_fixed:][:num_carry]
    sequences, rows = inputs[num_fixed + num_carry :], []
    for i in range(params["length"])[::step]:
        args = [*fixed, *carry, *(x[i] for x in sequences)]
        results = yield from _run(params["jaxpr"], args, call)
        carry, row = results[:num_carry], results[num_carry:]
        rows.append(row)
    return [*carry, *(jnp.stack(column) for column in zip(*rows[::step], strict=True))]


def _is_finite(x: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(x), jnp.floating) or bool(np.isfinite(x).all())


def _plain(scope: str) -> str:
    """Return encoder/stage1 for `transpose(jvp(encoder))/stage1`."""
    scope = re.sub(r"(transpose|jvp|vmap|jit)\(|\)", "", scope)
    names = [n for n in scope.split("/") if n not in ("", "checkpoint", "rematted_computation")]
    if names and names[0] in names[1:]:  # inside of a recomputed block the whole path comes again
        names = names[len(names) - 1 - names[::-1].index(names[0]) :]
    return "/".join(names)


def _line(eqn: JaxprEqn) -> str:
    """Return the innermost line of this package that asked for an operation, or ""."""
    traceback: Any = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        _, package, path = frame.file_name.replace("\\", "/").rpartition("/segret_jax/")
        if package and not path.endswith("nonfinite.py"):
            return f"segret_jax/{path}:{frame.line_num}"
    return ""
