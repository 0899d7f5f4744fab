"""Finds the tensors of a computation that stop being finite, by making it operation by operation.

Works on a traced function (a jaxpr): each operation is carried out by itself, in the order of the
program, and its result looked at. Slow, and exact: nothing is fused or left out. What the program
itself puts in is no fault: an infinity, such as a mask's, and what is made of it short of nan; a
nan for a case that does not come, as long as it is only carried along.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# Operations that contain a program to look into, by the name of the parameter that holds it.
CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "remat2": "jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr",
}  # fmt: skip
# Operations that carry numbers along.
MOVES = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "expand_dims", "reshape",
    "select_n", "slice", "squeeze", "transpose",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A tensor that is not finite, made of finite ones; or one with nan, made of infinite ones."""

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


class _Enough(Exception):  # noqa: N818 - a way out of the recursion, not an error
    pass


class _Place(NamedTuple):
    scope: str = ""
    line: str = ""


@dataclass(frozen=True, slots=True)
class _Value:
    array: Any
    is_known: bool = False  # not to be finite: it is meant so, or was reported


def nonfinite(function: Callable, *args: Any, most: int = 5) -> list[Fault]:
    """Carry out `function(*args)`; return where its tensors stop being finite, in that order.

    Each is made of finite ones. The last is the first with a nan, or number `most`; those before
    it are infinite, which may do no harm (exp(-inf) = 0). The arguments are not looked at.
    """
    traced = jax.make_jaxpr(function)(*args)
    search = _Search(most)
    with suppress(_Enough):
        search.run(traced, [_Value(x) for x in jax.tree.leaves(args)], _Place())
    return search.faults


@dataclass
class _Search:
    most: int
    faults: list[Fault] = field(default_factory=list)

    def run(
        self, program: ClosedJaxpr | Jaxpr, args: Sequence[_Value], place: _Place
    ) -> list[_Value]:
        """Carry out a program that is called at `place`."""
        jaxpr, consts = program, []
        if isinstance(program, ClosedJaxpr):
            jaxpr, consts = program.jaxpr, program.consts
        values: dict[Var, _Value] = dict(zip(jaxpr.invars, args, strict=True))
        values |= {v: _constant(x) for v, x in zip(jaxpr.constvars, consts, strict=True)}
        last_use = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if isinstance(v, Var)}
        kept = {v for v in jaxpr.outvars if isinstance(v, Var)}

        def read(atom: Any) -> _Value:
            return _constant(atom.val) if isinstance(atom, Literal) else values[atom]

        for i, eqn in enumerate(jaxpr.eqns):
            results = self.apply(eqn, [read(v) for v in eqn.invars], place)
            values |= dict(zip(eqn.outvars, results, strict=True))
            for v in {v for v in eqn.invars if isinstance(v, Var)} - kept:
                if last_use[v] == i:  # or a large model would not fit
                    values.pop(v, None)
        return [read(v) for v in jaxpr.outvars]

    def apply(self, eqn: JaxprEqn, inputs: list[_Value], place: _Place) -> list[_Value]:
        name = eqn.primitive.name
        scope = _join(place.scope, str(eqn.source_info.name_stack))
        inner = _Place(scope, _line(eqn) or place.line)
        if name in CALLS and CALLS[name] in eqn.params:
            return self.run(eqn.params[CALLS[name]], inputs, inner)
        if name == "scan":
            return self.scan(eqn, inputs, inner)
        if name == "cond":  # of the model's: one branch for each kind of backend
            branch = eqn.params["branches"][int(inputs[0].array)]
            return self.run(branch, inputs[1:], inner)
        params = eqn.primitive.get_bind_params(eqn.params)
        out = eqn.primitive.bind(*(value.array for value in inputs), **params)
        arrays = out if eqn.primitive.multiple_results else [out]
        return [self.judge(array, eqn, inputs, inner) for array in arrays]

    def scan(self, eqn: JaxprEqn, inputs: list[_Value], place: _Place) -> list[_Value]:
        """Run a loop's body for each of its iterations."""
        consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
        fixed, carry = inputs[:consts], inputs[consts : consts + carries]
        sequences, rows = inputs[consts + carries :], []
        order = range(eqn.params["length"])
        for i in reversed(order) if eqn.params["reverse"] else order:
            step = [_Value(value.array[i], value.is_known) for value in sequences]
            results = self.run(eqn.params["jaxpr"], [*fixed, *carry, *step], place)
            carry = results[:carries]
            rows.append(results[carries:])
        rows = rows[::-1] if eqn.params["reverse"] else rows
        stacked = [
            _Value(jax.numpy.stack([v.array for v in column]), any(v.is_known for v in column))
            for column in zip(*rows, strict=True)
        ]
        return [*carry, *stacked]

    def judge(self, array: Any, eqn: JaxprEqn, inputs: list[_Value], place: _Place) -> _Value:
        """Note a result that is not finite, unless it comes of what is known not to be."""
        if not _is_float(array) or np.isfinite(host := np.asarray(array)).all():
            return _Value(array)
        num_nan = int(np.isnan(host).sum())
        follows = num_nan == 0 or eqn.primitive.name in MOVES
        if follows and any(value.is_known for value in inputs):
            return _Value(array, is_known=True)
        self.faults.append(
            Fault(
                scope=_plain(place.scope),
                is_backward="transpose(" in place.scope,
                operation=eqn.primitive.name,
                where=place.line or "an unknown place",
                result=_describe(host),
                num_nan=num_nan,
                num_inf=int(np.isinf(host).sum()),
                inputs=tuple(_describe(np.asarray(v.array), largest=True) for v in inputs),
            )
        )
        if num_nan or len(self.faults) == self.most:
            raise _Enough
        return _Value(array, is_known=True)


def _constant(value: Any) -> _Value:
    return _Value(value, _is_float(value) and not np.isfinite(np.asarray(value)).all())


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


def _line(eqn: JaxprEqn) -> str:
    """Return the innermost line of this package that asked for an operation, or ""."""
    traceback: Any = eqn.source_info.traceback
    frames: Sequence[Any] = traceback.frames if traceback else ()
    for frame in frames:
        path: str = frame.file_name.replace("\\", "/")
        if "/segret_jax/" in path and not path.endswith(("nonfinite.py", "replay.py")):
            return f"segret_jax/{path.rpartition('/segret_jax/')[2]}:{frame.line_num}"
    return ""  # of a library's function that was traced before
