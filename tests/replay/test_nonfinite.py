"""The first tensor that is not finite is named, wherever in a program it is made."""

from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from segret_jax.replay.nonfinite import Fault, _Call, _run, nonfinite


def fault_of(function: Callable, *args: Any) -> Fault:
    return nonfinite(function, *args)[0]


def test_finite_program_has_no_fault():
    assert nonfinite(lambda x: jnp.sum(jax.nn.softmax(x)), jnp.arange(4.0)) == []


def test_first_of_several_faults_has_its_scope_and_counts():
    def function(x):
        with jax.named_scope("fine"):
            x = x * 2
        with jax.named_scope("broken"):
            y = x / jnp.maximum(x - 2, 0)
        with jax.named_scope("later"):
            return y - y

    fault = fault_of(function, jnp.array([0.0, 1.0, 1.0, 3.0]))
    assert fault.scope == "broken"
    assert not fault.is_backward
    assert fault.operation == "div"
    assert (fault.num_nan, fault.num_inf) == (1, 2)
    assert fault.result == "float32[4]"
    assert "float32[4] up to 6" in fault.inputs


def test_fault_of_the_gradient_alone_is_found():
    """The root is fine at 0, its slope is not."""

    @jax.named_scope("roots")
    def function(x):
        return jnp.sum(jnp.sqrt(x))

    assert nonfinite(function, jnp.zeros(2)) == []
    assert fault_of(jax.grad(function), jnp.zeros(2)).scope == "roots"


def test_backward_pass_is_distinguished_from_forward_pass():
    @jax.custom_vjp
    def function(x):
        return x * 2

    function.defvjp(lambda x: (x * 2, x), lambda x, g: (g / (x - x),))
    assert nonfinite(function, jnp.float32(1)) == []
    fault = fault_of(jax.grad(lambda x: jnp.sin(function(x))), jnp.float32(1))
    assert fault.is_backward
    assert fault.operation == "div"


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_an_overflow_depends_on_the_precision(dtype):
    x = jnp.full(3, 300, dtype)
    faults = nonfinite(lambda x: x * x, x)
    assert len(faults) == (dtype == jnp.float16)
    for fault in faults:
        assert fault.num_inf == 3
        assert fault.inputs == ("float16[3] up to 300",) * 2


def test_infinity_of_a_mask_is_no_fault():
    def masked(x):
        scores = jnp.where(x > 0, x, -jnp.inf)
        return jax.nn.softmax(scores)

    assert nonfinite(masked, jnp.array([1.0, -1.0])) == []
    assert fault_of(lambda x: masked(x), jnp.array([-1.0, -1.0])).num_nan > 0  # all masked


def test_nan_that_is_only_moved_is_no_fault():
    def guarded(x):
        return jnp.where(x > 0, x, jnp.nan) * 2

    assert nonfinite(guarded, jnp.ones(2)) == []
    assert fault_of(guarded, jnp.array([1.0, -1.0])).operation == "mul"
    assert nonfinite(jnp.var, jnp.arange(3.0)) == []


@pytest.mark.parametrize(
    "move",
    [
        lambda x: lax.split(x, (2,)),
        lambda x: (lax.dynamic_slice(x, (jnp.argmin(x),), (2,)),),
        lambda x: (lax.optimization_barrier(x),),
    ],
    ids=["split", "dynamic_slice", "optimization_barrier"],
)
def test_operations_that_move_a_nan_are_no_fault(move):
    def guarded(x: jax.Array) -> jax.Array:
        (moved,) = move(jnp.where(x > 0, x, jnp.nan))
        return jnp.where(moved > 0, moved, 0.0)

    assert nonfinite(guarded, jnp.array([-1.0, 1.0])) == []


def test_infinite_tensors_are_reported_up_to_the_first_nan():
    def function(x):
        with jax.named_scope("harmless"):
            small = jnp.exp(-(x * x))
        with jax.named_scope("cause"):
            large = x * 1e20
        with jax.named_scope("effect"):
            difference = large - large
        return small + difference + 1 / (x - x)

    faults = nonfinite(function, jnp.full(2, 1e25))
    assert [fault.scope for fault in faults] == ["harmless", "cause", "effect"]
    assert [fault.num_nan for fault in faults] == [0, 0, 2]
    assert len(nonfinite(function, jnp.full(2, 1e25), most=2)) == 2


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: lambda x: lax.cond(x[0] > 0, f, f, x)]
)
def test_fault_inside_a_called_program_is_found(wrap):
    inner = wrap(jax.named_scope("inner")(lambda x: jnp.log(x - 1)))
    assert fault_of(lambda x: inner(x) + 1, jnp.ones(2)).num_inf == 2
    assert nonfinite(inner, jnp.full(2, 3.0)) == []


@pytest.mark.parametrize("reverse", [False, True])
def test_fault_in_an_iteration_of_a_loop_is_found(reverse):
    """Both ways the carry becomes 0 once, and is divided by."""

    def function(x):
        def body(carry, row):
            with jax.named_scope("body"):
                carry = carry - row
                return carry, 1 / carry

        return lax.scan(body, 3.0, x, reverse=reverse)

    assert nonfinite(function, jnp.array([1.0, 1.0])) == []
    fault = fault_of(function, jnp.array([1.0, 1.0, 1.0, 1.0]))
    assert fault.scope == "body"
    assert fault.result == "float32[]"
    expected, found = jax.make_jaxpr(function)(jnp.ones(2)), function(jnp.array([2.0, 2.5]))
    assert expected.out_avals[1].shape == found[1].shape


def test_evaluation_returns_the_results_of_the_program():
    def function(x, c):
        @jax.checkpoint
        def body(a, r):
            return a * c + r, a - r

        return lax.cond(c > 0, lambda: lax.scan(body, 1.0, x, reverse=True), lambda: (c, x))

    args = jnp.array([1.0, 2.0, 5.0]), jnp.float32(0.5)
    program = jax.make_jaxpr(function)(*args)

    def evaluated() -> Generator[Fault, None, None]:
        results = yield from _run(program, args, _Call("", "", set()))
        for result, expected in zip(results, jax.tree.leaves(function(*args)), strict=True):
            assert jnp.array_equal(result, expected)

    assert list(evaluated()) == []
