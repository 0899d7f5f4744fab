"""Reading of datasets that `prepare` wrote as ArrayRecord shards."""

import operator
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

from segret_jax.data.layouts import DatasetSpec
from segret_jax.data.lfs import refuse_pointer
from segret_jax.data.shards import manifest as manifests
from segret_jax.data.sources import FolderSource, Record, RecordSource, Sample
from segret_jax.errors import InputError, unknown_name


def open_files(spec: DatasetSpec, root: str | Path, split: str) -> RecordSource:
    """Open a split below `root`, prepared or as a folder.

    Where a root holds both, shards are taken before the folder. A remote root (gs://, s3://, any
    URL of fsspec) holds a prepared dataset; what cannot be read there is copied to the local disk
    first.

    Args:
        spec: The dataset.
        root: The folder or URL of the dataset.
        split: "training" or "validation".

    Raises:
        InputError: The files are missing, incomplete or of another dataset.
    """
    spec.check_split(split)
    if "://" in str(root):
        from segret_jax.data.shards import remote  # with its libraries, which few runs need

        folder, shards_at = remote.fetch(str(root), manifests.paths(spec))
        return PreparedSource(spec, folder, split, shards_at=shards_at)
    top = Path(root).expanduser().absolute()
    for path in manifests.paths(spec):
        if (top / path / manifests.MANIFEST).is_file():
            return PreparedSource(spec, top / path, split)
    unfinished = top / manifests.folder_below(spec)
    if unfinished.is_dir() or any(unfinished.parent.glob("incomplete.*")):
        raise manifests.incomplete(unfinished)
    return FolderSource(spec, root, split)


class StoredRecords:
    """The names, image sizes and undecoded pairs of one split, each checked when it is read."""

    names: Sequence[str]

    def __init__(self, folder: Path, split: str, *, shards_at: str = "") -> None:
        """Read manifest and index of `folder`; its shards may lie elsewhere, at `shards_at`.

        Raises InputError where there is no such split, or a file is lacking or damaged.
        """
        self.manifest = manifests.read_manifest(folder)
        if split not in self.manifest.splits:
            raise unknown_name(f"split of {folder}", split, self.manifest.splits)
        self._shards = self.manifest.splits[split].shards
        self._folder, self._split = folder, split
        self._shards_at = shards_at or str(folder)
        self.names, self.sizes = manifests.read_index(folder, self.manifest, split)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open shards: each worker process opens its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    @cached_property
    def _records(self) -> Any:
        from segret_jax.data.shards import builders

        return builders.open_records(str(self._folder), self._split, data_dir=self._shards_at)

    def where(self, index: int) -> str:
        """Return the shard and the position in it of a record, for messages."""
        position = index
        for shard, num_records in self._shards.items():
            if position < num_records:
                return f"{self._shards_at}/{shard}, record {position}"
            position -= num_records
        raise IndexError(f"record {index} of {len(self.names)}")

    def read(self, index: int) -> tuple[bytes, bytes]:
        """Return the bytes of image and label; InputError names a record that is damaged."""
        from segret_jax.data.shards import builders

        where = self.where(index)
        try:
            stored = self._records[index]
        except Exception as error:  # ArrayRecord's own, whose kinds are not documented
            for shard in self._shards:
                path = Path(self._shards_at, shard)
                if path.is_file():
                    refuse_pointer(path, str(path))
            raise self._damaged(where, index, str(error).partition("\n")[0]) from error
        name, image, label = stored["name"], stored["image"], stored["label"]
        if name != self.names[index].encode():
            raise self._damaged(where, index, f"it holds {name.decode(errors='replace')}")
        if stored["checksum"] != builders.checksum(name, image, label):
            raise self._damaged(where, index, "its checksum does not fit")
        return image, label

    def _damaged(self, where: str, index: int, reason: str) -> InputError:
        return InputError(
            f"{where} ({self.names[index]}) is damaged: {reason}; `segret data verify "
            f"{self._folder}` lists all damage; delete the folder and prepare it again"
        )


class PreparedSource(StoredRecords, RecordSource):
    """The pairs of one split of a dataset that `prepare` wrote, in the order of its folder."""

    def __init__(self, spec: DatasetSpec, folder: Path, split: str, *, shards_at: str = "") -> None:
        """Open `folder`, which has a manifest; `shards_at` as in `StoredRecords`.

        Raises InputError where it holds another dataset or was checked with another label table.
        """
        super().__init__(folder, split, shards_at=shards_at)
        held, label_table = self.manifest.dataset, manifests.label_table_hash(spec)
        if (held, self.manifest.label_table) != (spec.name, label_table):
            raise InputError(
                f"{folder} holds {held} prepared with another class table than that of "
                f"{spec.name} now; choose that dataset, or prepare this one into another folder"
            )
        self.spec, self.split = spec, split
        self.layout = spec.layout(self.manifest.splits[split].layout)

    def size(self, index: int) -> tuple[int, int]:
        """Return the image's (height, width), as stored when it was prepared."""
        return self.sizes[index]

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Read one pair; InputError as in `RecordSource`, and for a size other than stored."""
        sample, noted = super().__getitem__(index), self.size(operator.index(index))
        size = sample["label"].shape
        if size != noted:  # an earlier version noted sizes before turning
            raise InputError(
                f"{self.where(operator.index(index))}: {sample['name']} is "
                f"{size[0]}x{size[1]} upright, but index.json says {noted[0]}x{noted[1]}; delete "
                "the folder and prepare it again"
            )
        return sample

    def record(self, index: int) -> Record:
        """Return the undecoded pair; InputError where it is damaged."""
        name = self.names[index]
        image, label = self.read(index)
        where = f"{self.where(index)}: {name}"
        image_path = f"{where}{self.layout.image_suffix}"
        return Record(name, image, label, image_path, f"{where}{self.layout.label_suffix}")
