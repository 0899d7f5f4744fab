"""The pickle inside a PyTorch file, read without running anything that it names.

A pickle is a program for a stack machine. Python's own machine imports and calls whatever the
program names; this one can do neither: it makes containers, and `torch_rebuild` makes of names
either tensors and plain data, or inert records.
The opcodes are those of pickle protocols 2 to 5, parsed by the standard library's `pickletools`.
"""

import pickletools
from collections.abc import Callable
from io import BufferedReader, BytesIO
from typing import Any

from segret_jax.convert.records import append_items, set_items, set_state
from segret_jax.convert.torch_rebuild import RESAVE, Storage, rebuild, refer, resolve
from segret_jax.errors import InputError

# An opcode of one byte can take 100 bytes of memory. A checkpoint has some ten thousand opcodes.
MAX_OPCODES = 2**22
MAX_ARGUMENTS = 64  # of a call; a path has one for each of its folders


def load(stream: BytesIO | BufferedReader) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from `stream`; return what it holds and the storages that it refers to.

    Tensors come as `Tensor`, sets as lists, ordered dicts as plain ones. Raises InputError,
    without the path, for a name that `resolve` refuses; other exceptions mean a damaged pickle.
    """
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name == "STOP":
            break
        if count == MAX_OPCODES:
            raise InputError(f"holds millions of values beside its tensors; {RESAVE}")
        machine.step(opcode.name, argument)
    return machine.stack.pop(), machine.storages


LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES",
}  # fmt: skip
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack machine: its opcodes make containers, and `rebuild` makes values of names."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, code: str, argument: Any) -> None:
        if code in LITERALS:
            self.stack.append(argument)
        elif code in FRESH:
            self.stack.append(FRESH[code]())
        elif code in TUPLES:
            self.stack.append(tuple(self._cut(len(self.stack) - TUPLES[code])))
        elif code == "MARK":
            self.marks.append(len(self.stack))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if code == "MEMOIZE" else argument] = self.stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif code not in ("PROTO", "FRAME") and not self._fill(code):
            self._rebuild(code, argument)

    def _fill(self, code: str) -> bool:
        """Do the opcodes that put what was last read into a container."""
        match code:
            case "TUPLE":
                self.stack.append(tuple(self._cut(self.marks.pop())))
            case "FROZENSET":
                self.stack.append(self._cut(self.marks.pop()))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                start = len(self.stack) - 1 if code == "APPEND" else self.marks.pop()
                items = self._cut(start)
                append_items(self.stack[-1], items)
            case "SETITEM" | "SETITEMS":
                items = self._cut(len(self.stack) - 2 if code == "SETITEM" else self.marks.pop())
                set_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))
            case "POP":  # with POP_MARK: tuples that contain themselves
                self.stack.pop()
            case "POP_MARK":
                self._cut(self.marks.pop())
            case _:
                return False
        return True

    def _rebuild(self, code: str, argument: Any) -> None:
        """Do the opcodes that would import or call."""
        match code:
            case "GLOBAL":
                self.stack.append(resolve(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                self.stack.append(resolve(".".join(self._cut(len(self.stack) - 2))))
            case "REDUCE" | "NEWOBJ":
                callee, args = self._cut(len(self.stack) - 2)
                if type(args) is not tuple or len(args) > MAX_ARGUMENTS:
                    raise TypeError("a call without a tuple of arguments, or with too many")
                self.stack.append(rebuild(callee, args))
            case "BINPERSID":
                storage = refer(self.stack.pop())
                if self.storages.setdefault(storage.key, storage) != storage:
                    raise ValueError("a storage of two types or lengths")
                self.stack.append(storage)
            case "BUILD":
                state = self.stack.pop()
                set_state(self.stack[-1], state)
            case _:
                raise ValueError(f"pickle opcode {code}")

    def _cut(self, start: int) -> list[Any]:
        """Take everything from `start` off the stack."""
        if start < 0:
            raise IndexError("stack is empty")
        items = self.stack[start:]
        del self.stack[start:]
        return items
