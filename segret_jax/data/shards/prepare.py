"""Write a dataset as ArrayRecord shards: segret data prepare ade20k --source DIR ...

Every pair is decoded and checked on the way. The folder is DATA_DIR/NAME/VERSION; it counts once
its manifest is there, which is written last, so a run may be stopped at any time and run again.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from segret_jax.data.folders import counted, find_pairs
from segret_jax.data.layouts import SPLITS, DatasetSpec
from segret_jax.data.shards import manifest as manifests
from segret_jax.data.shards.manifest import Manifest
from segret_jax.data.sources import FolderSource
from segret_jax.errors import InputError
from segret_jax.files import atomic_write

Sources = Mapping[str, FolderSource]  # by split


def prepare(spec: DatasetSpec, source: Path, data_dir: str, *, shards: int) -> str:
    """Write the splits found in the folder `source`; return where they lie, path or URL.

    A remote `data_dir` is written in the user's cache first, then moved. Does nothing where the
    same dataset is complete already. Raises InputError for a faulty pair, and if another
    dataset is there; OSError for a full disk.
    """
    sources = find_splits(spec, source)
    fewest = min(len(found) for found in sources.values())
    if not 1 <= shards <= fewest:
        raise InputError(f"--shards is {shards}; it takes 1 to {fewest}, the images of a split")
    if "://" in data_dir:
        return _prepare_remote(spec, sources, data_dir.rstrip("/"), shards)
    folder = Path(data_dir).expanduser().absolute() / manifests.folder_below(spec)
    _prepare_local(spec, sources, folder, shards)
    return str(folder)


def find_splits(spec: DatasetSpec, source: Path) -> dict[str, FolderSource]:
    """Return the splits that are there; InputError if none is, or images lack labels."""
    found: dict[str, FolderSource] = {}
    missing = []
    for split in SPLITS:
        try:
            find_pairs(spec, source, split)
        except InputError as error:
            missing.append(str(error))
            continue
        found[split] = FolderSource(spec, source, split)
        print(
            f"{split}: {counted(len(found[split]), 'pair')}, {found[split].layout.describe(split)}"
        )
    if not found:
        raise InputError(missing[0])
    for reason in missing:
        print(f"left out: {reason}")
    return found


def _prepare_remote(spec: DatasetSpec, sources: Sources, data_dir: str, shards: int) -> str:
    from segret_jax.data.shards import remote

    url = f"{data_dir}/{manifests.folder_below(spec)}"
    there = remote.read_manifest(url)
    if there is not None:
        _refuse_other(spec, sources, shards, there, url)
        print(f"{url} is complete already")
        return url
    folder = remote.cache_folder(f"written to {url}") / manifests.folder_below(spec)
    manifest = _prepare_local(spec, sources, folder, shards)
    remote.upload(folder, manifest, url)
    shutil.rmtree(folder)
    return url


def _prepare_local(spec: DatasetSpec, sources: Sources, folder: Path, shards: int) -> Manifest:
    from segret_jax.data.shards import builders  # its libraries take half a second to import

    if (folder / manifests.MANIFEST).is_file():
        manifest = manifests.read_manifest(folder)
        _refuse_other(spec, sources, shards, manifest, str(folder))
        print(f"{folder} is complete already; segret data verify {folder} checks it")
        return manifest
    _remove_leftovers(folder)
    digests = _digests(sources)  # before the writing: a file changed during it differs afterward
    builder = builders.write(manifests.folder_name(spec), sources, folder, shards=shards)
    index = {name: {"names": sources[name].names, "sizes": builder.sizes[name]} for name in sources}
    atomic_write(folder / manifests.INDEX, json.dumps(index))
    written = builder.info.splits
    splits = {
        split: manifests.Split(
            layout=source.layout.name,
            source_digest=digests[split],
            shards=dict(zip(written[split].filenames, written[split].shard_lengths, strict=True)),
        )
        for split, source in sources.items()
    }
    manifest = Manifest(
        dataset=spec.name,
        version=manifests.VERSION,
        source="; ".join(source.layout.describe(split) for split, source in sources.items()),
        label_table=manifests.label_table_hash(spec),
        splits=splits,
        files=_stored_files(folder),
    )
    atomic_write(folder / manifests.MANIFEST, manifest.to_json())
    return manifest


def _refuse_other(
    spec: DatasetSpec, sources: Sources, shards: int, there: Manifest, where: str
) -> None:
    """Raise InputError if what is at `where` is not what is to be written."""
    digests = {name: split.source_digest for name, split in there.splits.items()}
    counts = {name: len(split.shards) for name, split in there.splits.items()}
    same = {
        "class table": there.label_table == manifests.label_table_hash(spec),
        "files": digests == _digests(sources),
        "shards": counts == dict.fromkeys(sources, shards),
    }
    differs = [what for what in same if not same[what]]
    if differs:
        raise InputError(
            f"{where} is complete, but its {' and '.join(differs)} differ from what is to be "
            "written; delete it, or choose another --data_dir"
        )


def _digests(sources: Sources) -> dict[str, str]:
    """Return by split a SHA-256 of the names, the sizes of the images, and the labels."""
    digests = {}
    for split, source in sources.items():
        digest = hashlib.sha256()
        for i in tqdm(range(len(source)), desc=f"{split} files", unit="pair", dynamic_ncols=True):
            size = source.image_path(i).stat().st_size
            label = manifests.stored_file(source.label_path(i))
            digest.update(f"{source.names[i]} {size} {label.sha256}\n".encode())
        digests[split] = digest.hexdigest()
    return digests


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


def _stored_files(folder: Path) -> dict[str, manifests.StoredFile]:
    files = tqdm(sorted(folder.iterdir()), "checksums", unit="file", dynamic_ncols=True)
    return {path.name: manifests.stored_file(path) for path in files if path.is_file()}
