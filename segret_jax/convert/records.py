"""Inert stand-ins for the objects of a pickle: nothing is imported and nothing is called.

Checkpoints hold more than tensors: configs, histories of losses, paths, dates. They become
`Record`s, of which only NumPy numbers are read.

An argument may be any earlier value of the pickle, many times. So no function copies one that can
be long: a file of some kB could fill the memory.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_KEY_PARTS = 8  # of a tuple that is a key in a dict


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names as "module.attribute": only that."""

    name: str


@dataclass(slots=True)
class Record:
    """An object as inert data: its name, arguments and state.

    `state` is whatever the pickle holds; attributes, or the items of a dict, are a dict.
    """

    name: str
    args: tuple
    state: Any = None

    def append(self, item: Any) -> None:
        """Drop an item: those of another class's list are of no use here."""

    extend = append


def set_items(target: Any, pairs: Iterable[Any]) -> None:
    """Put pairs into what must be a dict, with keys that are plain or short tuples of such."""
    if isinstance(target, Record):
        target.state = {} if target.state is None else target.state
        target = target.state
    if type(target) is not dict:
        raise TypeError(f"items for a {type(target).__name__}")
    for key, value in pairs:
        # Nothing deep or long is hashed: it overflows Python's own stack, or never ends.
        parts = key if type(key) is tuple else (key,)
        if len(parts) > MAX_KEY_PARTS or not all(map(is_plain, parts)):
            raise TypeError(f"a {type(key).__name__} as key")
        target[key] = value


def is_plain(key: Any) -> bool:
    return type(key) in (str, float, bool, type(None)) or (type(key) is int and abs(key) < 2**63)


def read_numbers(dtype: Any, data: Any, most: int) -> np.ndarray | None:
    """Return the numbers that NumPy saved, if there are at most `most`; else None."""
    if isinstance(data, Record) and data.name == "bytes":
        data = data.args[0][: 8 * most + 1].encode("latin1")
    match dtype:
        case Record(state=(_, ">", *_)):
            return None
        case Record(args=(str() as code, *_)) if re.fullmatch("[iuf][1248]|b1", code):
            fits = isinstance(data, bytes) and len(data) <= 8 * most
            return np.frombuffer(data, code) if fits else None
    return None


def read_array(value: Any, most: int) -> np.ndarray | None:
    """Return the numbers of a record of a NumPy array; None for another or one that is longer."""
    match value:
        case Record(
            name="numpy.ndarray", state=(_, tuple() as shape, dtype, bool() as fortran, data)
        ) if len(shape) <= 4:
            numbers = read_numbers(dtype, data, most)
            if numbers is not None:
                return numbers.reshape(shape, order="F" if fortran else "C")
    return None
