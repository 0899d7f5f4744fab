"""The two containers of `torch.save`: a zip archive, and before PyTorch 1.6 a row of pickles.

Both hold one pickle, in which each tensor refers to a storage by its key, and the storages'
bytes beside it. Storages are read when asked for, so that an optimizer's never are.

A pickle is a program for a stack machine. Python's own machine imports and calls whatever the
program names, and hashes what it is given as a key. Here its opcodes are those of a closed list,
of protocols 2 to 5, and `torch_rebuild` says what a name and a call of it stand for.
"""

import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from io import BufferedReader, BytesIO
from typing import Any, ClassVar, NamedTuple

from segret_jax.convert.records import Name, Record, set_items
from segret_jax.convert.torch_rebuild import DTYPES, RESAVE, Storage, is_size, rebuild, resolve
from segret_jax.errors import InputError

LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of PyTorch's magic number
LEGACY_PROTOCOL = 1001
BIG_ENDIAN = f"was written on a big-endian machine; {RESAVE} on a little-endian one"

# An opcode of one byte can take 100 bytes of memory. A checkpoint has some ten thousand opcodes.
MAX_OPCODES = 2**22
MAX_ARGUMENTS = 64  # of a call; a path has one for each of its folders

PYTHONS: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch  # handlers by opcode
HARMLESS = tuple(vars(pickle)[name][0] for name in (
    "PROTO", "STOP", "MARK", "POP", "POP_MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4",
    "BINFLOAT", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "GLOBAL", "STACK_GLOBAL", "BINPERSID",
))  # fmt: skip


class TorchFile(NamedTuple):
    """What was saved, its tensors as `torch_rebuild.Tensor`, and how to read their storages."""

    content: Any
    format: str  # as in `TensorFile`
    read: Callable[[Storage], bytes]


def open_zip(archive: zipfile.ZipFile, size: int) -> TorchFile:
    """Read the pickle of a zip archive of `size` bytes; reading a storage checks its CRC.

    After `torch.serialization.set_crc32_options(False)` PyTorch leaves every CRC at 0: then none
    is checked, and `format` says so. Raises InputError, without the path, for what is refused;
    other exceptions mean damage.
    """
    names = archive.namelist()
    prefix = next(n for n in names if n.endswith("/data.pkl")).removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in names:
        raise InputError(f"is a TorchScript program, not a checkpoint; {RESAVE}")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise InputError(f"has compressed data, which PyTorch never writes; {RESAVE}")
    if sum(info.file_size for info in archive.infolist()) > size:
        raise ValueError("its parts are larger than the file or overlap")
    checked = any(info.CRC for info in archive.infolist())
    if not checked:
        for info in archive.infolist():
            del info.CRC  # zipfile checks those that it knows
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        raise InputError(BIG_ENDIAN)
    kind = "torch zip" if checked else "torch zip without checksums"
    content, _ = _load(BytesIO(archive.read(f"{prefix}data.pkl")))
    return TorchFile(content, kind, lambda storage: archive.read(f"{prefix}data/{storage.key}"))


def open_legacy(file: BufferedReader, size: int) -> TorchFile:
    """Read the pickles of a file of `size` bytes; raises as `open_zip`.

    They are: magic number, protocol, machine, content, keys; then for each key the number of
    elements as 8 bytes, and the elements.
    """
    _magic, protocol, machine = (_load(file)[0] for _ in range(3))
    if protocol != LEGACY_PROTOCOL:
        raise ValueError("unknown protocol of PyTorch")
    if machine["little_endian"] is not True:
        raise InputError(BIG_ENDIAN)
    content, storages = _load(file)
    keys, _ = _load(file)
    starts = {}
    for key in keys:
        if type(key) is not str:  # to hash another may never end
            raise TypeError("a storage with a key of wrong type")
        if int.from_bytes(file.read(8), "little") != storages[key].numel:
            raise ValueError("a storage has another length than its tensors say")
        starts[key] = file.tell()
        if file.seek(storages[key].nbytes, os.SEEK_CUR) > size:
            raise ValueError("the end is missing")

    def read(storage: Storage) -> bytes:
        file.seek(starts[storage.key])
        return file.read(storages[storage.key].nbytes)

    return TorchFile(content, "torch legacy", read)


def _load(stream: BytesIO | BufferedReader) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from `stream`; return what it holds and the storages that it refers to.

    Tensors come as `Tensor`, sets as lists, ordered dicts as plain ones. Raises InputError,
    without the path, for names and opcodes of no list; other exceptions mean a damaged pickle.
    """
    start = stream.tell()
    for count, (opcode, _, _) in enumerate(pickletools.genops(stream)):
        if ord(opcode.code) not in _Unpickler.dispatch:
            raise InputError(f"has pickle opcode {opcode.name}, which no tensor needs; {RESAVE}")
        if count > MAX_OPCODES:
            raise InputError(f"holds millions of values beside its tensors; {RESAVE}")
    stream.seek(start)
    unpickler = _Unpickler(stream)
    return unpickler.load(), unpickler.storages


class _Unpickler(pickle._Unpickler):
    """Python's stack machine in Python, as the one in C hashes any key, however deep."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, stream: BytesIO | BufferedReader) -> None:
        super().__init__(stream, encoding="latin1")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Name:
        return resolve(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        """Read what PyTorch leaves where a storage was: its type, key and length."""
        kind, storage_type, key, _location, numel, *view = pid[:6]
        if kind != "storage" or any(view):
            raise InputError(f"refers to its tensors in a form that is not read; {RESAVE}")
        if type(key) is not str or not is_size(numel):
            raise TypeError("a storage with a key or a length of wrong type")
        storage = Storage(key, DTYPES[storage_type.name], numel)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("a storage of two types or lengths")
        return storage

    def load_frame(self) -> None:
        self.read(8)  # its length, which may be any: nothing is read ahead

    def load_reduce(self) -> None:
        args, callee = self.stack.pop(), self.stack.pop()
        if type(args) is not tuple or len(args) > MAX_ARGUMENTS:
            raise TypeError("a call without a tuple of arguments, or with too many")
        self.stack.append(rebuild(callee, args))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        set_items(self.stack[-1], [(key, value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        set_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state if target.state is None else target.state
        elif type(target) is not dict:  # a dict's attributes, such as `_metadata`, are of no use
            raise TypeError(f"a state for a {type(target).__name__}")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: PYTHONS[code] for code in HARMLESS},
        pickle.FRAME[0]: load_frame,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_SET[0]: PYTHONS[pickle.EMPTY_LIST[0]],  # a list, which hashes nothing
        pickle.FROZENSET[0]: PYTHONS[pickle.LIST[0]],
        pickle.ADDITEMS[0]: PYTHONS[pickle.APPENDS[0]],
    }
