"""Write a dataset as ArrayRecord shards: segret data prepare ade20k --source DIR ...

Every pair is decoded and checked on the way. The folder is DATA_DIR/NAME/VERSION; it counts once
its manifest is there, which is written last, so a run may be stopped at any time and run again.
"""

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from absl import logging as absl_logging
from tqdm import tqdm

from segret_jax.data.folders import find_pairs
from segret_jax.data.layouts import SPLITS, DatasetSpec
from segret_jax.data.shards.manifest import (
    INDEX,
    MANIFEST,
    PREPARE,
    VERIFY,
    VERSION,
    Manifest,
    Split,
    folder_name,
    is_ours,
    label_table_hash,
    read_manifest,
    stored_file,
)
from segret_jax.data.sources import FolderSource
from segret_jax.errors import InputError
from segret_jax.files import atomic_write

_SPARE = 1.1  # disk needed, as a multiple of the source's size


def prepare(spec: DatasetSpec, source: Path, data_dir: str, *, shards: int) -> str:
    """Write the splits found in the folder `source`; return where they lie, path or URL.

    A remote `data_dir` is written in the user's cache first, then moved. Does nothing where the
    same dataset is complete already. Raises InputError for a faulty pair, if another dataset is
    there, or for too little disk; OSError if the disk is full nevertheless.
    """
    sources = find_splits(spec, source)
    fewest = min(len(found) for found in sources.values())
    if not 1 <= shards <= fewest:
        raise InputError(f"--shards is {shards}; it takes 1 to {fewest}, the images of a split")
    if "://" in data_dir:
        return _prepare_remote(spec, sources, data_dir.rstrip("/"), shards)
    folder = Path(data_dir).expanduser().absolute() / folder_name(spec) / VERSION
    _prepare_local(spec, sources, folder, shards)
    return str(folder)


def find_splits(spec: DatasetSpec, source: Path) -> dict[str, FolderSource]:
    """Return the splits that are there; InputError if none is, or images lack labels."""
    found: dict[str, FolderSource] = {}
    missing = None
    for split in SPLITS:
        try:
            find_pairs(spec, source, split)
        except InputError as error:
            missing = missing or error
            continue
        found[split] = FolderSource(spec, source, split)
        print(f"{split}: {len(found[split])} pairs, {found[split].layout.describe(split)}")
    if missing and not found:
        raise missing
    if missing:
        print(f"left out: {missing}")
    return found


def _prepare_remote(
    spec: DatasetSpec, sources: Mapping[str, FolderSource], data_dir: str, shards: int
) -> str:
    from segret_jax.data.shards import remote

    url = f"{data_dir}/{folder_name(spec)}/{VERSION}"
    there = remote.read_manifest(url)
    if there is not None:
        _refuse_other(spec, sources, shards, there, url)
        print(f"{url} is complete already")
        return url
    folder = remote.cache_folder(f"written to {url}") / folder_name(spec) / VERSION
    manifest = _prepare_local(spec, sources, folder, shards)
    remote.upload(folder, manifest, url)
    shutil.rmtree(folder)
    return url


def _prepare_local(
    spec: DatasetSpec, sources: Mapping[str, FolderSource], folder: Path, shards: int
) -> Manifest:
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        _refuse_other(spec, sources, shards, manifest, str(folder))
        print(f"{folder} is complete already; {VERIFY} {folder} checks it")
        return manifest
    _remove_leftovers(folder)
    _check_disk(sources, folder)
    digests = _digests(sources)  # before the writing: a file changed during it differs afterwards
    index = _write_shards(spec, sources, folder, shards)
    atomic_write(folder / INDEX, json.dumps(index))
    manifest = _describe(spec, sources, digests, folder)
    atomic_write(folder / MANIFEST, manifest.to_json())
    return manifest


def _refuse_other(
    spec: DatasetSpec,
    sources: Mapping[str, FolderSource],
    shards: int,
    manifest: Manifest,
    where: str,
) -> None:
    """Raise InputError if what is at `where` is not what is to be written."""
    there = {
        "class table": manifest.label_table,
        "files": {split: stored.source_digest for split, stored in manifest.splits.items()},
        "shards": {split: len(stored.shards) for split, stored in manifest.splits.items()},
    }
    wanted = {
        "class table": label_table_hash(spec),
        "files": _digests(sources),
        "shards": dict.fromkeys(sources, shards),
    }
    differs = [what for what in there if there[what] != wanted[what]]
    if differs:
        raise InputError(
            f"{where} is complete, but its {' and '.join(differs)} differ from what is to be "
            "written; delete it, or choose another --data_dir"
        )


def _digests(sources: Mapping[str, FolderSource]) -> dict[str, str]:
    """Return by split a SHA-256 of the names, the sizes of the images, and the labels."""
    digests = {}
    for split, source in sources.items():
        digest = hashlib.sha256()
        for i in tqdm(range(len(source)), desc=f"{split} files", unit="pair", dynamic_ncols=True):
            size, label = source.image_path(i).stat().st_size, stored_file(source.label_path(i))
            digest.update(f"{source.names[i]} {size} {label.sha256}\n".encode())
        digests[split] = digest.hexdigest()
    return digests


def _remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted run left: TFDS's unfinished folder, or one without manifest.

    Raises InputError where another program wrote the folder.
    """
    leftovers = list(folder.parent.glob(f"incomplete.*_{VERSION}"))
    if folder.is_dir():
        if not is_ours(folder):
            raise InputError(f"{folder} is not from {PREPARE}; choose another --data_dir")
        leftovers.append(folder)
    for leftover in leftovers:
        print(f"removing {leftover}, left by an interrupted run")
        shutil.rmtree(leftover)


def _check_disk(sources: Mapping[str, FolderSource], folder: Path) -> None:
    size = sum(
        source.image_path(i).stat().st_size + source.label_path(i).stat().st_size
        for source in sources.values()
        for i in range(len(source))
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(_SPARE * size), shutil.disk_usage(folder.parent).free
    if free < needed:
        raise InputError(
            f"{folder.parent} has {_readable(free)} free; preparing needs about "
            f"{_readable(needed)}: free some, or choose another --data_dir"
        )


def _readable(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _write_shards(
    spec: DatasetSpec, sources: Mapping[str, FolderSource], folder: Path, shards: int
) -> dict[str, dict[str, list]]:
    """Write the shards; return the names and sizes of the records by split."""
    from segret_jax.data.shards import builders

    builder = builders.PairBuilder(
        name=folder_name(spec), sources=sources, data_dir=str(folder.parents[1])
    )
    try:
        with _quiet():
            builders.build(builder, shards=shards)
    except RuntimeError as error:  # ArrayRecord's, such as for a full disk
        reason = str(error).partition("\n")[0]
        raise OSError(f"writing {folder} failed: {reason}") from error
    return {
        split: {"names": list(source.names), "sizes": builder.sizes[split]}
        for split, source in sources.items()
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's own messages and progress bars away; ours go to the standard error."""
    import tensorflow_datasets as tfds

    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        absl_logging.set_verbosity(level)


def _describe(
    spec: DatasetSpec,
    sources: Mapping[str, FolderSource],
    digests: Mapping[str, str],
    folder: Path,
) -> Manifest:
    """Return the manifest of the files in `folder`."""
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    lengths = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    with tqdm(total=size, desc="checksums", unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        stored = {path.name: stored_file(path, read=bar.update) for path in files}
    return Manifest(
        dataset=spec.name,
        version=VERSION,
        source="; ".join(source.layout.describe(split) for split, source in sources.items()),
        label_table=label_table_hash(spec),
        splits={
            split: Split(
                layout=source.layout.name,
                source_digest=digests[split],
                shards=dict(
                    zip(
                        (name for name in stored if f"-{split}." in name),
                        lengths[split],
                        strict=True,
                    )
                ),
            )
            for split, source in sources.items()
        },
        files=stored,
    )
