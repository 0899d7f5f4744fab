"""Prepared datasets in remote stores, through fsspec: copied to the local disk, or read there.

ArrayRecord itself reads gs://, so only the small files are copied from there. From any other store
all files are. A copy counts once its manifest is there, which comes last in both directions.
"""

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import pooch
from tqdm import tqdm

from segret_jax.data.shards import manifest as manifests
from segret_jax.data.shards.manifest import MANIFEST, Manifest, StoredFile
from segret_jax.errors import InputError
from segret_jax.files import atomic_write

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}  # by scheme


def cache_folder(url: str) -> Path:
    """Return the local folder that stands for a URL, in the user's cache (XDG_CACHE_HOME)."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Path(pooch.os_cache("segret_jax")) / "data" / key


def fetch(url: str, paths: tuple[str, ...]) -> tuple[Path, str]:
    """Copy the files of the prepared dataset at `url` that are needed locally and not there yet.

    Args:
        url: The root of the dataset.
        paths: The paths below `url` where it may lie.

    Returns:
        The local folder, and where the shards are.

    Raises:
        InputError: There is no dataset, or a file does not fit the manifest.
    """
    store = open_store(url)
    tops = [f"{url.rstrip('/')}/{path}".removesuffix("/.") for path in paths]
    top = next((top for top in tops if _exists(store, f"{top}/{MANIFEST}")), None)
    if top is None:
        raise InputError(
            f"there is no prepared dataset at {url} (no {paths[0]}/manifest.json); write it there "
            f"with segret data prepare NAME --source DIR --data_dir {url}"
        )
    content = store.cat_file(f"{top}/{MANIFEST}")
    manifest = manifests.parse_manifest(content, f"{top}/{MANIFEST}")
    folder, native = cache_folder(top), url.startswith("gs://")
    copied = folder / MANIFEST
    if not copied.is_file() or copied.read_bytes() != content:
        _download(store, top, folder, manifest.small_files if native else manifest.files)
        atomic_write(copied, content)
    return folder, top if native else str(folder)


def _download(store: Any, top: str, folder: Path, files: dict[str, StoredFile]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # of another version at the same place
    missing = {name: file for name, file in files.items() if not _is_here(folder / name, file)}
    size = sum(file.bytes for file in missing.values())
    logging.warning("copying %s to %s first (%.1f MB)", top, folder, size / 1e6)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name, file in tqdm(missing.items(), "copying", unit="file", dynamic_ncols=True):
            partial = Path(scratch, name)
            store.get_file(f"{top}/{name}", str(partial))
            if manifests.stored_file(partial) != file:
                raise InputError(
                    f"{top}/{name} does not fit its manifest.json; write the dataset there again"
                )
            partial.replace(folder / name)


def _is_here(path: Path, file: StoredFile) -> bool:
    return path.is_file() and manifests.stored_file(path) == file


def is_complete(url: str) -> bool:
    """Return whether a complete prepared dataset lies at `url`."""
    return _exists(open_store(url), f"{url}/{MANIFEST}")


def upload(folder: Path, manifest: Manifest, url: str) -> None:
    """Copy a prepared dataset to `url`, the manifest last; a second run continues the first.

    A partial manifest tells the files of an interrupted run from those of another preparation,
    whose shards can have the same sizes.
    """
    store, note = open_store(url), f"{url}/{MANIFEST}.partial"
    content = manifest.to_json().encode()
    store.makedirs(url, exist_ok=True)
    is_resumed = _exists(store, note) and store.cat_file(note) == content
    store.pipe_file(note, content)
    logging.warning("copying %s to %s (%.1f MB)", folder, url, manifest.num_bytes / 1e6)
    for name, file in tqdm(manifest.files.items(), "copying", unit="file", dynamic_ncols=True):
        target = f"{url}/{name}"
        if not (is_resumed and _exists(store, target) and store.size(target) == file.bytes):
            store.put_file(str(folder / name), target)
    store.pipe_file(f"{url}/{MANIFEST}", content)
    store.rm_file(note)


def open_store(url: str) -> Any:
    """Return the file system of a URL or a path; InputError if its package is missing."""
    try:
        return fsspec.url_to_fs(url)[0]
    except ImportError as error:
        scheme = url.partition("://")[0]
        hint = f"pip install {PACKAGES[scheme]}" if scheme in PACKAGES else str(error)
        raise InputError(f"{url} needs another package: {hint}") from error
    except ValueError as error:
        raise InputError(f"{url} cannot be opened: {error}") from error


def _exists(store: Any, path: str) -> bool:
    try:
        return bool(store.exists(path))
    except Exception as error:  # each store has its own errors: no access, no network
        raise InputError(f"{path} cannot be reached: {error}") from error
