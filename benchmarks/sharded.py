"""Weights as float16 safetensors in parts of a bounded size, with the index that names them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segret_jax.checkpoint.safetensors import write_safetensors

LARGEST_PART = 15_000_000  # bytes, header included
HEADER = 200  # bytes of a tensor in the header, at most


def write(folder: Path, tensors: Mapping[str, np.ndarray], *, limit: int = LARGEST_PART) -> None:
    """Write model-00001-of-0000N.safetensors and so on, and model.safetensors.index.json.

    Numbers that float16 cannot hold stay float32. A tensor larger than `limit` is a part by itself.
    """
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        half = as_float16(tensor)
        if parts[-1] and size + half.nbytes + HEADER > limit:
            parts.append({})
            size = 0
        parts[-1][name] = half
        size += half.nbytes + HEADER
    files = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        write_safetensors(folder / file, part, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for part in parts for t in part.values())},
        "weight_map": {n: file for file, part in zip(files, parts, strict=True) for n in part},
    }
    text = json.dumps(index, indent=1) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def as_float16(tensor: np.ndarray) -> np.ndarray:
    """Return floats as float16 where all are in its range; anything else as it is."""
    if tensor.dtype != np.float32 or np.abs(tensor).max(initial=0) > np.finfo(np.float16).max:
        return tensor
    return tensor.astype(np.float16)
