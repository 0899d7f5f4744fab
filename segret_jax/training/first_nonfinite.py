"""Finds the first tensor of a computation that is not finite, by making it operation by operation.

Works on a traced function (a jaxpr): each operation is carried out by itself, in the order of the
program, and its result looked at. Slow, and exact: nothing is fused or left out. Infinities that
the program itself puts in, such as those of a mask, are no fault, and neither is what is directly
made of them; nan always is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# Operations that contain a program to look into, by the name of the parameter that holds it.
CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "remat2": "jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A tensor that is not finite although all that it was made of is."""

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


class _Found(Exception):  # noqa: N818 - a way out of the recursion, not an error
    def __init__(self, fault: Fault):
        self.fault = fault


@dataclass(frozen=True, slots=True)
class _Value:
    array: Any
    is_meant: bool = False  # that it is infinite


def first_nonfinite(function: Callable, *args: Any) -> Fault | None:
    """Carry out `function(*args)`; return its first non-finite tensor, or None if all are finite.

    The arguments themselves are not looked at.
    """
    traced = jax.make_jaxpr(function)(*args)
    try:
        _run(traced, [_Value(x) for x in jax.tree.leaves(args)], "")
    except _Found as found:
        return found.fault
    return None


def _run(program: ClosedJaxpr | Jaxpr, args: Sequence[_Value], scope: str) -> list[_Value]:
    jaxpr, consts = (
        (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, [])
    )
    values: dict[Var, _Value] = dict(zip(jaxpr.invars, args, strict=True))
    values |= {v: _constant(x) for v, x in zip(jaxpr.constvars, consts, strict=True)}
    last_use = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if isinstance(v, Var)}
    kept = {v for v in jaxpr.outvars if isinstance(v, Var)}

    def read(atom: Any) -> _Value:
        return _constant(atom.val) if isinstance(atom, Literal) else values[atom]

    for i, eqn in enumerate(jaxpr.eqns):
        results = _apply(eqn, [read(v) for v in eqn.invars], scope)
        values |= dict(zip(eqn.outvars, results, strict=True))
        for v in {v for v in eqn.invars if isinstance(v, Var)} - kept:
            if last_use[v] == i:  # or a large model would not fit
                values.pop(v, None)
    return [read(v) for v in jaxpr.outvars]


def _apply(eqn: JaxprEqn, inputs: list[_Value], scope: str) -> list[_Value]:
    name = eqn.primitive.name
    inner = _join(scope, str(eqn.source_info.name_stack))
    if name in CALLS and CALLS[name] in eqn.params:
        return _run(eqn.params[CALLS[name]], inputs, inner)
    if name == "scan":
        return _scan(eqn, inputs, inner)
    params = eqn.primitive.get_bind_params(eqn.params)
    out = eqn.primitive.bind(*(value.array for value in inputs), **params)
    arrays = out if eqn.primitive.multiple_results else [out]
    return [_judged(array, eqn, inputs, inner) for array in arrays]


def _scan(eqn: JaxprEqn, inputs: list[_Value], scope: str) -> list[_Value]:
    """Run a loop's body for each of its iterations."""
    consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    fixed, carry = inputs[:consts], inputs[consts : consts + carries]
    sequences, rows = inputs[consts + carries :], []
    order = range(eqn.params["length"])
    for i in reversed(order) if eqn.params["reverse"] else order:
        step = [_Value(value.array[i], value.is_meant) for value in sequences]
        results = _run(eqn.params["jaxpr"], [*fixed, *carry, *step], scope)
        carry = results[:carries]
        rows.append(results[carries:])
    rows = rows[::-1] if eqn.params["reverse"] else rows
    stacked = [
        _Value(jax.numpy.stack([value.array for value in column]), any(v.is_meant for v in column))
        for column in zip(*rows, strict=True)
    ]
    return [*carry, *stacked]


def _judged(array: Any, eqn: JaxprEqn, inputs: list[_Value], scope: str) -> _Value:
    if not _is_float(array):
        return _Value(array)
    host = np.asarray(array)
    if np.isfinite(host).all():
        return _Value(array)
    num_nan = int(np.isnan(host).sum())
    if num_nan == 0 and any(value.is_meant for value in inputs):
        return _Value(array, is_meant=True)
    raise _Found(
        Fault(
            scope=_plain(scope),
            is_backward="transpose(" in scope,
            operation=eqn.primitive.name,
            where=_where(eqn),
            result=_describe(host),
            num_nan=num_nan,
            num_inf=int(np.isinf(host).sum()),
            inputs=tuple(_describe(np.asarray(v.array), largest=True) for v in inputs),
        )
    )


def _constant(value: Any) -> _Value:
    return _Value(value, _is_float(value) and bool(np.isinf(np.asarray(value)).any()))


def _is_float(array: Any) -> bool:
    return jax.numpy.issubdtype(jax.numpy.result_type(array), jax.numpy.floating)


def _describe(array: np.ndarray, *, largest: bool = False) -> str:
    text = f"{array.dtype}{list(array.shape)}"
    if largest and array.size and _is_float(array):
        text += f" up to {np.abs(array.astype(np.float64)).max():.3g}"
    return text


def _join(outer: str, inner: str) -> str:
    return f"{outer}/{inner}" if outer and inner else outer or inner


def _plain(scope: str) -> str:
    """Take `transpose(jvp(encoder))/stage1` for encoder/stage1, and no name twice in a row."""
    for wrapper in ("transpose(", "jvp(", "vmap(", "jit(", ")"):
        scope = scope.replace(wrapper, "")
    names = [n for n in scope.split("/") if n not in ("", "checkpoint", "rematted_computation")]
    if names and names[0] in names[1:]:  # inside of a recomputed block the whole path comes again
        names = names[len(names) - 1 - names[::-1].index(names[0]) :]
    return "/".join(names)


def _where(eqn: JaxprEqn) -> str:
    """Return the innermost place in this package that asked for an operation."""
    traceback: Any = eqn.source_info.traceback
    frames: Sequence[Any] = traceback.frames if traceback else ()
    for frame in frames:
        path: str = frame.file_name.replace("\\", "/")
        if "/segret_jax/" in path and not path.endswith(("first_nonfinite.py", "replay.py")):
            return f"segret_jax/{path.rpartition('/segret_jax/')[2]}:{frame.line_num}"
    return "an unknown place"
