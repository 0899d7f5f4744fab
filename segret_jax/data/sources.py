"""Sources of images and labels by index: folders here, prepared shards in `prepared`."""

import logging
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, SupportsIndex, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.decode import decode_label, decode_turned, image_size, map_label
from segret_jax.data.folders import find_pairs, hints, plural, remedy
from segret_jax.data.layouts import DatasetSpec, Layout
from segret_jax.data.orientation import fit_label
from segret_jax.errors import InputError, abbreviate
from segret_jax.files import read_bytes


class Sample(TypedDict):
    """One image with its label: class ids and 255."""

    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    name: str


@runtime_checkable
class Samples(Protocol):
    """Random access to samples, as training needs it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: SupportsIndex) -> Sample: ...


@runtime_checkable
class Source(Samples, Protocol):
    """Samples whose names and sizes (height, width) are known without decoding."""

    def name(self, index: int) -> str: ...
    def size(self, index: int) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Record:
    """One pair as stored: the content of both files, and their paths for messages."""

    name: str
    image: bytes
    label: bytes
    image_path: str
    label_path: str


class RecordSource(ABC):
    """Decodes the records of one split of a dataset, wherever they are stored.

    Serves `grain.MapDataset.source`, and pickles without its data for worker processes.
    """

    spec: DatasetSpec
    split: str
    layout: Layout
    names: Sequence[str]

    @abstractmethod
    def record(self, index: int) -> Record:
        """Return the undecoded pair; InputError where it cannot be read."""

    def raw_label(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """Return the label's values as stored; InputError where it cannot be read."""
        record = self.record(index)
        return decode_label(record.label, where=record.label_path)

    def __repr__(self) -> str:
        """Name the data, not the machine: grain compares this text when a run resumes."""
        return f"{type(self).__name__}({self.spec.name}, {self.split}, {len(self)} images)"

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the pair's name."""
        return self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return the upright image's (height, width) from its header."""
        record = self.record(index)
        return image_size(record.image, where=record.image_path)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Read one pair; InputError for a faulty file, an unknown id, or sizes that differ."""
        return self.decode(self.record(operator.index(index)))

    def decode(self, record: Record) -> Sample:
        """Turn stored bytes into a sample, upright; InputError as `__getitem__`."""
        image, orientation = decode_turned(record.image, where=record.image_path)
        raw = decode_label(record.label, where=record.label_path)
        mapped = map_label(raw, self.layout.lookup, path=record.label_path)
        label = fit_label(mapped, image.shape[:2], orientation)
        if image.shape[:2] != label.shape:
            (height, width), (label_height, label_width) = image.shape[:2], label.shape
            turned = ", and one is turned" if label.shape == (width, height) else ""
            raise InputError(
                f"{record.image_path} is {height}x{width} (height x width) but its label "
                f"{record.label_path} is {label_height}x{label_width}; they must be equal{turned}"
            )
        return {"image": image, "label": label, "name": record.name}


class FolderSource(RecordSource):
    """The image and label pairs of one split in a folder, by index, in sorted order."""

    def __init__(
        self, spec: DatasetSpec, root: str | Path, split: str, *, skip_unpaired: bool = False
    ) -> None:
        """List and pair the files of a split.

        Args:
            spec: The dataset.
            root: The folder of the dataset.
            split: "training" or "validation".
            skip_unpaired: Whether to leave out files without a partner, otherwise an error.

        Raises:
            InputError: The root, a folder, or one file of a pair is missing.
        """
        pairs = find_pairs(spec, root, split)
        if pairs.unpaired and not skip_unpaired:
            found = ", ".join(
                f"{plural(len(names), kind)} without {other} ({abbreviate(names)})"
                for kind, other, names in pairs.unpaired
            )
            where = f"{pairs.images.folder} and {pairs.labels.folder}"
            raise InputError(f"{found} in {where}{hints(pairs)}; {remedy(spec, split)}")
        if pairs.note:
            logging.warning("%s", pairs.note)
        self.spec, self.split = spec, split
        self.layout, self.names = pairs.layout, pairs.names
        self._images = pairs.images.without_listing()
        self._labels = pairs.labels.without_listing()

    def record(self, index: int) -> Record:
        """Return the bytes of both files; InputError if one cannot be read."""
        image, label = self.image_path(index), self.label_path(index)
        files = read_bytes(image), read_bytes(label), str(image), str(label)
        return Record(self.names[index], *files)

    def raw_label(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """Return the label's values as stored, without reading the image."""
        path = self.label_path(index)
        return decode_label(read_bytes(path), where=str(path))

    def size(self, index: int) -> tuple[int, int]:
        """Return the upright image's (height, width), reading no more than its header."""
        return image_size(self.image_path(index))

    def image_path(self, index: int) -> Path:
        return self._images.path(self.names[index])

    def label_path(self, index: int) -> Path:
        return self._labels.path(self.names[index])
