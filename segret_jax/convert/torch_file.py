"""The two containers of `torch.save`: a zip archive, and before PyTorch 1.6 a row of pickles.

Both hold one pickle, in which each tensor refers to a storage by its key, and the storages'
bytes beside it. Storages are read when asked for, so that an optimizer's never are.
"""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import Any

from segret_jax.convert import torch_pickle
from segret_jax.convert.torch_rebuild import RESAVE, Storage
from segret_jax.errors import InputError

LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of PyTorch's magic number
LEGACY_PROTOCOL = 1001
BIG_ENDIAN = f"was written on a big-endian machine; {RESAVE} on a little-endian one"


@dataclass(frozen=True, slots=True)
class TorchFile:
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

    def read(storage: Storage) -> bytes:
        return archive.read(f"{prefix}data/{storage.key}")

    content, _ = torch_pickle.load(BytesIO(archive.read(f"{prefix}data.pkl")))
    return TorchFile(content, "torch zip" if checked else "torch zip without checksums", read)


def open_legacy(file: BufferedReader, size: int) -> TorchFile:
    """Read the pickles of a file of `size` bytes; raises as `open_zip`.

    They are: magic number, protocol, machine, content, keys; then for each key the number of
    elements as 8 bytes, and the elements.
    """
    _magic, protocol, machine = (torch_pickle.load(file)[0] for _ in range(3))
    if protocol != LEGACY_PROTOCOL:
        raise ValueError("unknown protocol of PyTorch")
    if machine["little_endian"] is not True:
        raise InputError(BIG_ENDIAN)
    content, storages = torch_pickle.load(file)
    keys, _ = torch_pickle.load(file)
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
