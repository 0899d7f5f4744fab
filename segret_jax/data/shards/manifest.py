"""The manifest of a prepared dataset: its files, with sizes and checksums.

It is written last, so a folder without it is incomplete. Beside it lie the shards, TFDS's two
descriptions and `index.json`, which holds the names and image sizes of all records.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from segret_jax.data.layouts import DatasetSpec
from segret_jax.data.lfs import refuse_pointer
from segret_jax.errors import InputError

VERSION = "1.0.0"
"""Of the stored form; it names the folder DATA_DIR/NAME/VERSION."""

MANIFEST, INDEX = "manifest.json", "index.json"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split: the layout its labels were found in, and {shard: number of records}."""

    layout: str
    shards: dict[str, int]

    @property
    def num_records(self) -> int:
        return sum(self.shards.values())


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.bytes} bytes of SHA-256 {self.sha256}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that was written for one dataset; `source` tells where from, without the machine.

    `label_table` is the hash of what stored label values mean (`label_table_hash`).
    """

    dataset: str
    version: str
    source: str
    label_table: str
    splits: dict[str, Split]
    files: dict[str, StoredFile]

    @property
    def num_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def small_files(self) -> dict[str, StoredFile]:
        """Return the files beside the shards, without which no record can be found."""
        shards = {shard for split in self.splits.values() for shard in split.shards}
        return {name: file for name, file in self.files.items() if name not in shards}

    def to_json(self) -> str:
        """Return the text of manifest.json; the totals are for people."""
        totals = {
            "records": {name: split.num_records for name, split in self.splits.items()},
            "bytes": self.num_bytes,
        }
        return json.dumps(asdict(self) | {"totals": totals}, indent=1) + "\n"


def parse_manifest(stored: bytes, where: str) -> Manifest:
    """Read the content of manifest.json; InputError if it is none."""
    refuse_pointer(stored, where)
    try:
        return _parse(Manifest, json.loads(stored.decode()), "it")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{where} is damaged ({error!r}); delete its folder and prepare the dataset again"
        ) from error


def _parse(kind: Any, value: Any, name: str) -> Any:
    """Return a JSON value as a dataclass, a dict[str, ...], str or int; TypeError if it is none."""
    json_kind = dict if is_dataclass(kind) else get_origin(kind) or kind
    if not isinstance(value, json_kind):
        raise TypeError(f"{name} is {type(value).__name__}, not {json_kind.__name__}")
    if args := get_args(kind):
        return {key: _parse(args[1], each, key) for key, each in value.items()}
    if json_kind is dict:
        kinds = get_type_hints(kind)
        return kind(**{key: _parse(kinds[key], value[key], key) for key in kinds})
    return value


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared dataset; InputError if it is damaged or not there."""
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise incomplete(folder) from None


def read_index(
    folder: Path, manifest: Manifest, split: str
) -> tuple[list[str], list[tuple[int, int]]]:
    """Return names and image sizes (height, width) of a split's records, in their order.

    Args:
        folder: The folder of the prepared dataset.
        manifest: Its manifest.
        split: The name of the split.

    Raises:
        InputError: index.json is not there, or is not what the manifest tells.
    """
    path = folder / INDEX
    if path.is_file():
        refuse_pointer(path, str(path))
    try:
        if stored_file(path) != manifest.files.get(INDEX):
            raise ValueError(f"it does not fit {MANIFEST}")
        content = json.loads(path.read_text(encoding="utf-8"))[split]
        names, sizes = content["names"], [(height, width) for height, width in content["sizes"]]
        counts = len(names), len(sizes), manifest.splits[split].num_records
        if len(set(counts)) > 1:
            raise ValueError("{} names, {} sizes and {} records of {}".format(*counts, split))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); delete {folder} and run segret data prepare again"
        ) from error
    return names, sizes


def folder_name(spec: DatasetSpec) -> str:
    """Return the dataset's name as TFDS takes it for folders and files."""
    name = re.sub("[^a-z0-9]", "_", spec.name.lower())
    return name if name[:1].isalpha() else f"set_{name}"


def folder_below(spec: DatasetSpec) -> str:
    """Return where `prepare` writes below its --data_dir."""
    return f"{folder_name(spec)}/{VERSION}"


def paths(spec: DatasetSpec) -> tuple[str, ...]:
    """Return where below a root the prepared form may lie."""
    return folder_below(spec), VERSION, "."


def is_prepared(folder: Path) -> bool:
    """Return whether `prepare` wrote the TFDS folder `folder`, complete or not."""
    info = folder / "dataset_info.json"
    return info.is_file() and b'"segret_jax.data.shards.builders"' in info.read_bytes()


def incomplete(folder: Path) -> InputError:
    """Return (not raise) the error for a folder that an interrupted run left behind."""
    return InputError(
        f"{folder} is incomplete (it has no manifest.json): its preparation was interrupted; run "
        f"segret data prepare again, it starts over"
    )


def label_table_hash(spec: DatasetSpec) -> str:
    """Return a hash of the class names and of what every stored label value means."""
    digest = hashlib.sha256("\n".join(spec.class_table.class_names).encode())
    for layout in spec.layouts:
        digest.update(f"\n{layout.name}\n".encode() + layout.lookup.tobytes())
    return digest.hexdigest()


def stored_file(path: Path) -> StoredFile:
    """Return size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(bytes=file.tell(), sha256=digest)
