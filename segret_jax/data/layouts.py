"""How a dataset lies on disk and what its stored label values mean."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.class_table import ClassTable
from segret_jax.errors import unknown_name

SPLITS = ("training", "validation")


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """One way in which a dataset lies on disk: folders, name endings, meaning of label values.

    The image `{images}/STEM{image_suffix}` belongs to the label `{labels}/STEM{label_suffix}`;
    STEM may hold subfolders, and `{split}` in a folder stands for the split's name there. Where
    one folder holds all splits, the text file `stems` lists those of a split. `void` are the
    values that the dataset's own files hold for pixels without a class.
    """

    name: str
    splits: Mapping[str, str]
    lookup: UInt8[np.ndarray, "256"]
    void: tuple[int, ...]
    images: str = "images/{split}"
    image_suffix: str = ".jpg"
    labels: str = "annotations/{split}"
    label_suffix: str = ".png"
    stems: str = ""

    def describe(self, split: str) -> str:
        """Say in words where the files of a split must lie below the root."""
        text = (
            f"{self.images}/**/*{self.image_suffix} with {self.labels}/**/*{self.label_suffix}"
            + (f" and {self.stems}" if self.stems else "")
        )
        return text.format(split=self.splits[split])


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetSpec:
    """A dataset: its classes, and the layouts in which it is read (`folders.find_pairs` chooses).

    Its root may also be a folder that holds the folder `archive`, as the official archive does.
    `json_file` is the path of a user's own description, empty for a published dataset.
    """

    name: str
    class_table: ClassTable
    layouts: tuple[Layout, ...]
    download_hint: str
    archive: str = ""
    json_file: str = ""

    def split_names(self, split: str) -> tuple[str, ...]:
        """Return the folder names of a split, one per layout; InputError for another split."""
        known = self.layouts[0].splits
        if split not in known:
            raise unknown_name(f"split of {self.name}", split, known)
        return tuple(layout.splits[split] for layout in self.layouts)

    def layout(self, name: str) -> Layout:
        """Return a layout by its name; InputError with the nearest name otherwise."""
        for layout in self.layouts:
            if layout.name == name:
                return layout
        names = [layout.name for layout in self.layouts]
        raise unknown_name(f"layout of {self.name}", name, names)
