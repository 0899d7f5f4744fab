"""What checks annotations in CI: --jaxtyping-packages=segret_jax,tests.check_annotations."""

from collections.abc import Callable
from typing import Any

_checked: dict[Any, Callable] = {}


def check_annotations(function: Callable) -> Callable:
    """Return beartype's form of a function; for one like an earlier one, the earlier one's form.

    A function within another is defined, and given to this, at each call of the other. What
    jaxtyping gives has the annotations, and a body that does nothing.
    """
    import beartype  # a fifth of a second that processes without the option need not take

    key = (
        function.__module__, function.__qualname__, function.__code__,
        *function.__annotations__.items(),
    )  # fmt: skip
    if key not in _checked:
        _checked[key] = beartype.beartype(function)
    return _checked[key]
