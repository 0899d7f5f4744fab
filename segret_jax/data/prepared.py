"""Reading datasets that were prepared as ArrayRecord shards."""

from pathlib import Path

from segret_jax.data.datasets import DatasetSpec
from segret_jax.data.sources import FolderSource, RecordSource


def open_files(spec: DatasetSpec, root: str | Path, split: str) -> RecordSource:
    """Open a split below `root`, prepared or as a folder; InputError says what is wrong."""
    return FolderSource(spec, root, split)
