"""Folders and file names of a dataset on disk, and the meaning of its stored label values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt8

from segret_jax.data.class_table import IGNORE, UNKNOWN, ClassTable
from segret_jax.errors import unknown_name

SPLITS = ("training", "validation")


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """One form of a dataset on disk.

    The image `{images}/STEM{image_suffix}` belongs to the label `{labels}/STEM{label_suffix}`;
    STEM may hold subfolders, and `{split}` in a folder stands for the split's name there.

    Attributes:
        name: The name of the layout.
        lookup: Class id, 255 or `UNKNOWN` by stored label value.
        void: The values that the dataset's own files hold for pixels without a class.
        splits: The name of the folder by split.
        stems: A text file with the stems of a split, if one folder holds all splits.
    """

    name: str
    lookup: UInt8[np.ndarray, "256"]
    void: tuple[int, ...] = (IGNORE,)
    splits: Mapping[str, str] = field(default_factory=lambda: {split: split for split in SPLITS})
    images: str = "images/{split}"
    image_suffix: str = ".jpg"
    labels: str = "annotations/{split}"
    label_suffix: str = ".png"
    stems: str = ""

    @property
    def class_values(self) -> Int64[np.ndarray, " n"]:
        """The stored values that mean a class, in increasing order."""
        return np.flatnonzero(self.lookup < UNKNOWN)

    def describe(self, split: str) -> str:
        """Return in words where the files of a split must lie below the root."""
        labels = f"{self.labels}/**/*{self.label_suffix}" + f" and {self.stems}" * bool(self.stems)
        text = f"{self.images}/**/*{self.image_suffix} with {labels}"
        return text.format(split=self.splits[split])


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetSpec:
    """A dataset: its classes, and the layouts in which it is read (`folders.find_pairs` chooses).

    Attributes:
        download_hint: Where to get the files; follows "get NAME: ".
        archive: The folder in the official archive; the root may be its parent.
        json_file: The path of a user's own description, empty for a published dataset.
    """

    name: str
    class_table: ClassTable
    layouts: tuple[Layout, ...]
    download_hint: str
    archive: str = ""
    json_file: str = ""

    def check_split(self, split: str) -> None:
        """Raise InputError for a split that the dataset does not have."""
        if split not in self.layouts[0].splits:
            raise unknown_name(f"split of {self.name}", split, self.layouts[0].splits)

    def layout(self, name: str) -> Layout:
        """Return a layout by its name; InputError with the nearest name otherwise."""
        by_name = {layout.name: layout for layout in reversed(self.layouts)}  # the first of a name
        if name not in by_name:
            raise unknown_name(f"layout of {self.name}", name, by_name)
        return by_name[name]
