"""Settings: dataclass fields with rules for their values, and groups of them as flat keys.

A key is the path of attributes from the outermost group: `train.steps`.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from segret_jax.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Rules for the value of a setting; bounds apply to each number of a tuple."""

    choices: tuple[str, ...] = ()
    above: int | float = -math.inf
    minimum: int | float = -math.inf
    maximum: int | float = math.inf
    below: int | float = math.inf
    entry: Any = None
    """An example number of a tuple of any length."""
    sized: bool = False
    """With train.minutes, the value 0 is replaced to fit data and machine."""
    may_change: bool = False
    """A continued run may have another value."""
    compiled: bool = True
    """The compiled training step depends on the value."""
    scored: bool = True
    """Of a model: the value can change a score, and is recorded beside one."""
    shared: bool = False
    """Weights mean something only to a model with the same value."""

    def violation(self, number: int | float) -> str:
        """Return the bound that `number` violates, in words; empty if none."""
        if not self.minimum <= number <= self.maximum:
            if self.maximum == math.inf:
                return f"{self.minimum:g} or more"
            return f"from {self.minimum:g} to {self.maximum:g}"
        if number <= self.above:
            return "positive"
        if number >= self.below:
            return f"below {self.below:g}"
        return ""


def setting(default: Any, **rules: Any) -> Any:
    """Return a dataclass field with a default and the `Rules` of its values."""
    return field(default=default, metadata={"rules": Rules(**rules)})


def walk(group: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Yield (key, value, field) of each setting of a group, nested groups included."""
    for one in dataclasses.fields(group):
        value = getattr(group, one.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}", value, one


def flatten(group: Any) -> dict[str, Any]:
    """Return {key: value} of every setting."""
    return {key: value for key, value, _ in walk(group)}


def rules(group: Any) -> dict[str, Rules]:
    """Return {key: rules} of every setting."""
    return {key: one.metadata["rules"] for key, _, one in walk(group)}


def set_value(group: Any, key: str, value: Any) -> None:
    """Set the value at `key`."""
    *path, name = key.split(".")
    for part in path:
        group = getattr(group, part)
    setattr(group, name, value)


def check(group: Any, *, ignore_bounds_of: tuple[str, ...] = ()) -> None:
    """Raise InputError for the first setting whose value breaks its rules."""
    for key, value, one in walk(group):
        rule: Rules = one.metadata["rules"]
        _check_type(key, value, one.default, rule)
        if rule.choices and value not in rule.choices:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(rule.choices)}")
        if isinstance(value, bool | str) or key in ignore_bounds_of:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if bound := next(filter(None, map(rule.violation, numbers)), ""):
            raise InputError(f"{key} is {value}; it must be {bound}")


def _check_type(key: str, value: Any, default: Any, rule: Rules) -> None:
    if rule.entry is not None:
        takes = "numbers separated by commas"
        fits = isinstance(value, tuple) and all(_fits(x, rule.entry) for x in value)
    elif isinstance(default, tuple):
        takes = f"{len(default)} numbers"
        fits = isinstance(value, tuple) and len(value) == len(default)
        fits = fits and all(map(_fits, value, default))
    else:
        kind = type(default).__name__
        takes = "a finite number" if kind == "float" else f"a value of type {kind}"
        fits = _fits(value, default)
    if not fits:
        raise InputError(f"{key} is {value!r}; it takes {takes}, such as {default}")


def _fits(value: Any, default: Any) -> bool:
    if type(default) is float and type(value) in (int, float):
        return math.isfinite(value)
    return type(value) is type(default)
