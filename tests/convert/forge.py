"""Forged files: pickles put together from opcodes, in both containers of PyTorch."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

FOUR = np.arange(4, dtype="<f4").tobytes()


def value(content: object) -> bytes:
    return pickle.dumps(content, 2)[2:-1]


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(function: str, *args: bytes) -> bytes:
    return name(function) + b"(" + b"".join(args) + b"tR"


def storage(key: object = "0", numel: object = 4, kind: str = "torch.FloatStorage") -> bytes:
    return b"(" + value("storage") + name(kind) + b"".join(map(value, (key, "cpu", numel))) + b"tQ"


def tensor(
    offset: object = 0,
    shape: object = (4,),
    strides: object = (1,),
    stored: bytes = b"",
    *rest: bytes,
) -> bytes:
    args = [value(arg) for arg in (offset, shape, strides, False)]
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", stored or storage(), *args, hooks, *rest)


def state(**items: bytes) -> bytes:
    return b"}(" + b"".join(value(key) + item for key, item in items.items()) + b"u"


def write_zip(path: Path, content: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + content + b".")
        for entry, data in ({"data/0": FOUR} | entries).items():
            archive.writestr(f"a/{entry}", data)
    return path


def write_legacy(
    path: Path,
    content: bytes,
    *,
    little: bool = True,
    protocol: int = 1001,
    keys: object = ("0",),
    numel: int = 4,
) -> Path:
    parts: list[Any] = [0x1950A86A20F9469CFC6C, protocol, {"little_endian": little}]
    head = b"".join(pickle.dumps(part, 2) for part in parts) + b"\x80\x02" + content + b"."
    path.write_bytes(head + pickle.dumps(keys, 2) + struct.pack("<q", numel) + FOUR)
    return path
