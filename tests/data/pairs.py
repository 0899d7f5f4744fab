"""Small datasets on disk in the real layouts, from the generated scenes."""

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from segret_jax.data.datasets import DatasetSpec, Layout
from segret_jax.data.sources import Sample
from segret_jax.data.synthetic import SyntheticSource

SIZES = {"training": (32, 48), "validation": (40, 32)}


def write_dataset(
    root: Path, spec: DatasetSpec, layout: Layout, counts: dict[str, int]
) -> dict[str, list[Sample]]:
    """Write scenes as `layout` stores them; return them with their labels, by split.

    A label that is no class id (255) is stored as the first value that means so.
    """
    back = np.full(256, layout.void[0], np.uint8)
    for value in range(255, -1, -1):
        if layout.lookup[value] < 254:
            back[layout.lookup[value]] = value
    written = {}
    for split, count in counts.items():
        scenes = SyntheticSource(seed=len(split), num_images=count, size=SIZES[split])
        written[split] = [scenes[i] for i in range(count)]
        for i, scene in enumerate(written[split]):
            scene["label"][:2] = 255
            stem = f"{split[0]}{i:03d}"  # some layouts keep all splits in one folder
            scene["name"] = f"city_{i % 2}/{stem}" if "{split}" in layout.images else stem
            _write_pair(root, layout, split, scene, back[scene["label"]])
    assert spec.layout(layout.name) is layout
    return written


def _write_pair(root: Path, layout: Layout, split: str, scene: Sample, raw: np.ndarray) -> None:
    folder = layout.splits[split]
    image = root / layout.images.format(split=folder) / f"{scene['name']}{layout.image_suffix}"
    label = root / layout.labels.format(split=folder) / f"{scene['name']}{layout.label_suffix}"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene["image"]).save(image)
    if label.suffix == ".mat":
        scipy.io.savemat(label, {"S": raw})
    else:
        Image.fromarray(raw).save(label)
    if layout.stems:
        stems = root / layout.stems.format(split=folder)
        stems.parent.mkdir(exist_ok=True)
        with stems.open("a") as file:
            file.write(f"{scene['name']}\n")


def flip(path: Path, content: bytes) -> None:
    """Change one byte near the end of where `content` lies in the file."""
    stored = bytearray(path.read_bytes())
    stored[stored.index(content[-80:]) + 50] ^= 0x40
    path.write_bytes(stored)
