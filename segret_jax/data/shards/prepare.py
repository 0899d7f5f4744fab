"""Write a dataset as ArrayRecord shards: segret data prepare ade20k --source DIR ...

Every pair is decoded and checked on the way. The folder is DATA_DIR/NAME/VERSION; it counts once
its manifest is there, which is written last, so a run may be stopped at any time and run again.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from segret_jax.data.folders import find_pairs, plural
from segret_jax.data.layouts import SPLITS, DatasetSpec
from segret_jax.data.shards import manifest as manifests
from segret_jax.data.shards import remote
from segret_jax.data.shards.download import download
from segret_jax.data.shards.manifest import Manifest
from segret_jax.data.sources import FolderSource
from segret_jax.errors import InputError
from segret_jax.files import atomic_write

Sources = Mapping[str, FolderSource]  # by split


def prepare(
    spec: DatasetSpec, source: Path, data_dir: str, *, shards: int, fetch: bool = False
) -> str:
    """Write the splits found in the folder `source`; return where they lie, path or URL.

    A complete folder is left as it is. A remote `data_dir` is written in the user's cache first,
    then moved.

    Args:
        spec: The dataset.
        source: The folder of its images and labels.
        data_dir: The folder or URL to write to.
        shards: The number of files per split.
        fetch: Whether to download the archive into `source` before.

    Raises:
        InputError: A pair is faulty.
        OSError: The disk is full.
    """
    is_remote = "://" in data_dir
    where = data_dir.rstrip("/") if is_remote else str(Path(data_dir).expanduser().absolute())
    where += f"/{manifests.folder_below(spec)}"
    if remote.is_complete(where) if is_remote else Path(where, manifests.MANIFEST).is_file():
        print(f"{where} is complete already: delete it to prepare it again")
        return where
    if fetch:
        download(spec, source)
    sources = find_splits(spec, source)
    fewest = min(len(found) for found in sources.values())
    if not 1 <= shards <= fewest:
        raise InputError(f"--shards is {shards}; it takes 1 to {fewest}, the images of a split")
    if is_remote:
        folder = remote.cache_folder(f"written to {where}") / manifests.folder_below(spec)
        remote.upload(folder, _write(spec, sources, folder, shards), where)
        shutil.rmtree(folder)
    else:
        _write(spec, sources, Path(where), shards)
    return where


def find_splits(spec: DatasetSpec, source: Path) -> dict[str, FolderSource]:
    """Return the splits that are there; InputError if none is, or images lack labels."""
    found: dict[str, FolderSource] = {}
    missing = []
    for split in SPLITS:
        try:
            find_pairs(spec, source, split)
        except InputError as error:
            missing.append(error)
            continue
        found[split] = FolderSource(spec, source, split)
        pairs = plural(len(found[split]), "pair")
        print(f"{split}: {pairs}, {found[split].layout.describe(split)}")
    if not found:
        raise missing[0]
    for reason in missing:
        print(f"left out: {reason}")
    return found


def _write(spec: DatasetSpec, sources: Sources, folder: Path, shards: int) -> Manifest:
    from segret_jax.data.shards import builders  # its libraries take half a second to import

    _remove_leftovers(folder)
    builder = builders.write(manifests.folder_name(spec), sources, folder, shards=shards)
    index = {name: {"names": sources[name].names, "sizes": builder.sizes[name]} for name in sources}
    atomic_write(folder / manifests.INDEX, json.dumps(index))
    written = builder.info.splits
    splits = {
        split: manifests.Split(
            layout=source.layout.name,
            shards=dict(zip(written[split].filenames, written[split].shard_lengths, strict=True)),
        )
        for split, source in sources.items()
    }
    files = tqdm(sorted(folder.iterdir()), "checksums", unit="file", dynamic_ncols=True)
    manifest = Manifest(
        dataset=spec.name,
        version=manifests.VERSION,
        source="; ".join(source.layout.describe(split) for split, source in sources.items()),
        label_table=manifests.label_table_hash(spec),
        splits=splits,
        files={path.name: manifests.stored_file(path) for path in files if path.is_file()},
    )
    atomic_write(folder / manifests.MANIFEST, manifest.to_json())
    return manifest


def _remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted run left: TFDS's unfinished folder, or one without manifest.

    Raises InputError where another program wrote the folder.
    """
    leftovers = list(folder.parent.glob(f"incomplete.*_{folder.name}"))
    if folder.is_dir():
        if not manifests.is_prepared(folder):
            raise InputError(f"{folder} is not from segret data prepare; choose another --data_dir")
        leftovers.append(folder)
    for leftover in leftovers:
        print(f"removing {leftover}, left by an interrupted run")
        shutil.rmtree(leftover)
