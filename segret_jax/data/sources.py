"""Images and labels by index: from folders here, from prepared shards in `prepared`."""

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, SupportsIndex, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.datasets import IMAGE_SUFFIXES, DatasetSpec, Layout
from segret_jax.data.decode import decode_image, decode_label, image_size, map_label
from segret_jax.errors import InputError


class Sample(TypedDict):
    """One image with its label: class ids and 255."""

    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    name: str


@runtime_checkable
class Samples(Protocol):
    """Random access to samples: what training needs."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: SupportsIndex) -> Sample: ...


@runtime_checkable
class Source(Samples, Protocol):
    """Samples whose names and sizes (height, width) are known without decoding."""

    def name(self, index: int) -> str: ...
    def size(self, index: int) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Record:
    """One pair as stored: the bytes of both files, and for messages where they lie."""

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

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the pair's name."""
        return self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return the image's (height, width) from its header."""
        record = self.record(index)
        return image_size(record.image, where=record.image_path)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Read one pair; InputError for a faulty file, a stray label id, or sizes that differ."""
        return self.decode(self.record(operator.index(index)))

    def decode(self, record: Record) -> Sample:
        """Turn stored bytes into a sample; InputError as `__getitem__`."""
        image = decode_image(record.image, where=record.image_path)
        raw = decode_label(record.label, where=record.label_path)
        label = map_label(raw, self.layout.lookup, path=record.label_path)
        if image.shape[:2] != label.shape:
            (height, width), (label_height, label_width) = image.shape[:2], label.shape
            turned = ", and one is turned: EXIF data, which is not applied here, may say so"
            turned = turned if (height, width) == (label_width, label_height) else ""
            raise InputError(
                f"{record.image_path} is {height}x{width} (height x width) but its label "
                f"{record.label_path} is {label_height}x{label_width}; they must be equal{turned}"
            )
        return {"image": image, "label": label, "name": record.name}


@dataclass(frozen=True)
class FilePairs:
    """The files of one split: its layout, the folders, and the stems in sorted order."""

    layout: Layout
    image_folder: Path
    label_folder: Path
    names: list[str]
    without_label: list[str]
    without_image: list[str]

    def other_images(self) -> str:
        """Say, for an error's text, that images lie there under a suffix that is not read."""
        suffixes = [
            suffix
            for suffix in IMAGE_SUFFIXES
            if (self.image_folder, suffix) != (self.label_folder, self.layout.label_suffix)
            and any(
                (self.image_folder / f"{name}{suffix}").is_file() for name in self.without_image
            )
        ]
        if not suffixes:
            return ""
        read, others = self.layout.image_suffix, " and ".join(suffixes)
        return f" (only *{read} is read there, but some are {others}: convert those to {read})"


def find_pairs(spec: DatasetSpec, root: str | Path, split: str) -> FilePairs:
    """List the files of `split` ("training" or "validation") in the first layout that is there.

    Raises InputError where no layout of the dataset is found below `root`.
    """
    spec.split_names(split)
    top = Path(root).expanduser().absolute()
    if not top.is_dir():
        raise InputError(f"there is no folder {top}; {_remedy(spec, split)}")
    if spec.archive and (top / spec.archive).is_dir():
        top = top / spec.archive
    nearest: FilePairs | None = None
    for layout in spec.layouts:
        found = _pairs_of(layout, top, split)
        if found.names:
            return found
        nearest = nearest or found
    assert nearest is not None
    raise InputError(f"{_lack(nearest)}; {_remedy(spec, split)}")


def _pairs_of(layout: Layout, top: Path, split: str) -> FilePairs:
    folder = layout.splits[split]
    image_folder = top / layout.images.format(split=folder)
    label_folder = top / layout.labels.format(split=folder)
    images = _stems(image_folder, layout.image_suffix)
    labels = _stems(label_folder, layout.label_suffix)
    if layout.stems:
        list_file = top / layout.stems.format(split=folder)
        listed = set(list_file.read_text().split()) if list_file.is_file() else set()
        images, labels = images & listed, labels & listed
    return FilePairs(
        layout, image_folder, label_folder,
        sorted(images & labels), sorted(images - labels), sorted(labels - images),
    )  # fmt: skip


def _lack(pairs: FilePairs) -> str:
    """Say what is missing where a layout has no pair at all."""
    for folder in (pairs.image_folder, pairs.label_folder):
        if not folder.is_dir():
            return f"there is no folder {folder}"
    if not pairs.without_label:
        return f"no *{pairs.layout.image_suffix} in {pairs.image_folder}"
    if not pairs.without_image:
        return f"no *{pairs.layout.label_suffix} in {pairs.label_folder}"
    return f"no image of {pairs.image_folder} has a label in {pairs.label_folder}"


def _remedy(spec: DatasetSpec, split: str) -> str:
    layouts = " or ".join(dict.fromkeys(layout.describe(split) for layout in spec.layouts))
    return (
        f"{spec.name} needs {layouts} in the folder given by --config.data.root=DIR; "
        f"get {spec.download_hint}"
    )


class FolderSource(RecordSource):
    """The image and label pairs of one split in a folder, by index, in sorted order."""

    def __init__(
        self, spec: DatasetSpec, root: str | Path, split: str, *, skip_unpaired: bool = False
    ) -> None:
        """List and pair the files of `split` ("training" or "validation") below `root`.

        Raises InputError where the root, a folder, or (without `skip_unpaired`) one file of a
        pair is missing.
        """
        pairs = find_pairs(spec, root, split)
        if not skip_unpaired and (pairs.without_label or pairs.without_image):
            raise InputError(
                f"{_unpaired('images', 'label', pairs.without_label)}"
                f"{_unpaired('labels', 'image', pairs.without_image)}"
                f"in {pairs.image_folder} and {pairs.label_folder}{pairs.other_images()}; "
                f"{_remedy(spec, split)}"
            )
        self.spec, self.split = spec, split
        self.layout, self.names = pairs.layout, pairs.names
        self._image_folder, self._label_folder = pairs.image_folder, pairs.label_folder

    def __repr__(self) -> str:
        """Name the data, not the machine: grain compares this text when a run resumes."""
        return f"FolderSource({self.spec.name}, {self.split}, {len(self)} images)"

    def record(self, index: int) -> Record:
        """Return the bytes of both files; InputError if one cannot be read."""
        name = self.names[index]
        image_path, label_path = self.image_path(index), self.label_path(index)
        return Record(name, _read(image_path), _read(label_path), str(image_path), str(label_path))

    def size(self, index: int) -> tuple[int, int]:
        """Return the image's (height, width), reading no more than its header."""
        return image_size(self.image_path(index))

    def image_path(self, index: int) -> Path:
        return self._image_folder / f"{self.names[index]}{self.layout.image_suffix}"

    def label_path(self, index: int) -> Path:
        return self._label_folder / f"{self.names[index]}{self.layout.label_suffix}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _stems(folder: Path, suffix: str) -> set[str]:
    """Return the paths below `folder` that end in `suffix`, relative and without the suffix."""
    return {
        (Path(where) / file).relative_to(folder).as_posix().removesuffix(suffix)
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.endswith(suffix) and not file.startswith(".")
    }


def _unpaired(kind: str, other: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {kind} without {other} ({shown}) "
