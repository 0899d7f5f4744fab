"""Settings: dataclass fields that carry their own rules, and groups of them as flat keys.

Values are plain, so that each can be given on the command line, printed, compared and saved as
JSON. A key is the path of attributes from the outermost group: `train.steps`.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from segret_jax.errors import InputError

Bound = int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for a setting; the bounds are of each number of a tuple."""

    choices: tuple[str, ...] = ()
    above: Bound = None
    minimum: Bound = None
    maximum: Bound = None
    below: Bound = None
    entry: Any = None  # of a tuple of any length: one of its numbers
    sized: bool = False  # with train.minutes, 0 is replaced to fit data and machine
    may_change: bool = False  # between the start of a run and its continuation
    compiled: bool = True  # the compiled training step depends on it
    scored: bool = True  # of a model: it can change a score, and is recorded beside one
    shared: bool = False  # weights mean something only to a model with the same value

    def bounds(self) -> str:
        """Return the bounds in words."""
        if self.maximum is not None:
            return f"from {self.minimum:g} to {self.maximum:g}"
        if self.above is not None:
            return "positive"
        return f"{self.minimum:g} or more"

    def allow(self, number: int | float) -> bool:
        """Return whether `number` is within the bounds but for `below`."""
        return (
            (self.above is None or number > self.above)
            and (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
        )


def setting(default: Any, meaning: str, **rules: Any) -> Any:
    """Return a dataclass field with a default, what it means in a line, and `Rules`."""
    return field(default=default, metadata={"meaning": meaning, "rules": Rules(**rules)})


def walk(group: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Yield (key, value, field) of each setting in a group and in the groups inside of it."""
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
    """Change the setting that `flatten` calls `key`."""
    *path, name = key.split(".")
    for part in path:
        group = getattr(group, part)
    setattr(group, name, value)


def check(group: Any, *, ignore_bounds_of: tuple[str, ...] = ()) -> None:
    """Raise InputError for the first setting whose value breaks its rules."""
    for key, value, one in walk(group):
        _check_type(key, value, one.default, one.metadata["rules"])
    for key, value, one in walk(group):
        rule: Rules = one.metadata["rules"]
        if rule.choices and value not in rule.choices:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(rule.choices)}")
        if isinstance(value, bool | str) or key in ignore_bounds_of:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(map(rule.allow, numbers)):
            raise InputError(f"{key} is {value}; it must be {rule.bounds()}")
        if rule.below is not None and not value < rule.below:
            raise InputError(f"{key} is {value}; it must be below {rule.below:g}")


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
