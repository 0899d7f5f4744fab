"""Files in the safetensors format: 8 bytes of length, a JSON header, the tensors' bytes.

Little-endian, row-major, no code. Format: https://huggingface.co/docs/safetensors
"""

import json
import math
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from segret_jax.errors import InputError

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "BOOL": np.dtype("?"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
}  # fmt: skip
Tensors = Mapping[str, np.ndarray]  # by name
MAX_HEADER = 2**24  # bytes, of some 100 for a tensor; as objects of Python they take 20 times that
MAX_AXES = 64  # NumPy's


def read_safetensors(
    file: BufferedReader, size: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors, read-only, and the metadata of a file of `size` bytes.

    Raises InputError, without the path, for a dtype that is not read and a header that is too long;
    ValueError and its like mean a damaged file.
    """
    header_size = int.from_bytes(file.read(8), "little")
    if header_size > size:
        raise ValueError("its header is longer than the file")
    if header_size > MAX_HEADER:
        raise InputError(f"has a header of {header_size} bytes; save the weights alone")
    header = json.loads(file.read(header_size))
    metadata = header.pop("__metadata__", {})
    tensors, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise InputError(
                f"has tensor {name[:100]!r} of type {str(entry['dtype'])[:20]!r}, "
                "which is not read; save it as F32"
            )
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        start, stop = entry["data_offsets"]
        # Bounded, as the product of many long numbers takes hours.
        if len(shape) > MAX_AXES or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise ValueError(f"the shape of tensor {name!r} is impossible")
        # Tensors follow each other without gap or overlap, so that no byte is hidden.
        if start != position or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the place of tensor {name!r} does not fit its shape")
        tensors[name] = np.frombuffer(file.read(stop - start), dtype).reshape(shape)
        position = stop
    if 8 + header_size + position != size:
        raise ValueError("the file is not as long as its header says")
    return tensors, metadata


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write tensors, in their order, and metadata to a file."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        start, position = position, position + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, position],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
