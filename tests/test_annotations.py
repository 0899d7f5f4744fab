"""What checks annotations in CI refuses wrong arguments and results of every definition."""

from collections.abc import Callable

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped

from tests.annotations import check_annotations


def first_row(dtype: type) -> Callable:
    """Define a function whose annotation is one of the call that defines it."""

    @jaxtyped(typechecker=check_annotations)
    def of(x: Float[dtype, "n n"], wrong: bool = False) -> Float[dtype, " n"]:
        return x if wrong else x[0]

    return of


def test_each_definition_of_a_function_is_checked():
    class Other(np.ndarray):
        pass

    square, tall = np.zeros((2, 2)), np.zeros((3, 2))
    for dtype in (np.ndarray, np.ndarray, Other):
        of = first_row(dtype)
        assert of(square.view(dtype)).shape == (2,)
        with pytest.raises(TypeCheckError, match="parameters"):
            of(tall.view(dtype))
        with pytest.raises(TypeCheckError, match="return value"):
            of(square.view(dtype), wrong=True)
    with pytest.raises(TypeCheckError, match="parameters"):
        first_row(Other)(square)
