"""Paths of pictures for runs on several machines: local, in a bucket, or in a list of paths."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from numpy import ndarray

from segret_jax.data.decode import decode_image
from segret_jax.data.shards.remote import open_store
from segret_jax.errors import InputError, abbreviate, shorten
from segret_jax.files import damage_as_input_errors
from segret_jax.prediction.inputs import (
    MAX_NAMED,
    SUFFIXES,
    find_pictures,
    read_picture,
    refuse_heic,
)

LISTS = (".parquet", ".txt")


def is_url(path: str) -> bool:
    """Return whether a path names a file of a bucket, such as gs://BUCKET/photo.jpg."""
    return "://" in path


def absolute(path: str) -> str:
    """Return a path that means the same in any folder."""
    return path if is_url(path) else os.path.abspath(path)


def find_paths(inputs: Sequence[str], *, recursive: bool = False) -> tuple[list[str], list[str]]:
    """Return the absolute paths and URLs of pictures, each once, and notes about other files.

    Args:
        inputs: Files, folders, patterns and URLs of these; and lists of paths, which are text files
            of one path a line, or Parquet files with the column `path`. The paths of a list are not
            looked up.
        recursive: Whether to read the subfolders of folders.

    Raises:
        InputError: A list cannot be read, or there is no picture.
    """
    local = [one for one in inputs if not is_url(one) and not one.lower().endswith(LISTS)]
    found, notes = [], []
    if local:
        pictures = find_pictures(local, recursive=recursive, formats=())
        found, notes = [absolute(str(path)) for path in pictures.pictures], pictures.notes
    for text in inputs:
        if text.lower().endswith(LISTS):
            found += _read_list(text)
        elif is_url(text):
            found += _find_in_bucket(text, recursive=recursive)
    if not found:
        raise InputError(f"no images in {abbreviate(inputs)}")
    unique = dict.fromkeys(found)
    if unwritable := [path for path in unique if not _is_text(path)]:
        names = abbreviate([*map(shorten, unwritable)], MAX_NAMED)
        notes = [*notes, f"not read, as their names are not UTF-8: {names}"]
    return [path for path in unique if _is_text(path)], notes


def _is_text(path: str) -> bool:
    """Return whether Parquet can store a path: Python reads other bytes as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _read_list(name: str) -> list[str]:
    store: Any = open_store(absolute(name))
    with damage_as_input_errors(name), store.open(absolute(name), "rb") as file:
        if name.lower().endswith(".txt"):
            lines = file.read().decode("utf-8-sig").splitlines()
        else:
            parquet = pq.ParquetFile(file)
            columns = parquet.schema_arrow.names
            if "path" not in columns:
                raise InputError(f"has no column path, but {shorten(', '.join(columns))}")
            lines = parquet.read(["path"])["path"].cast(pa.string()).to_pylist()
    return [absolute(line.strip()) for line in lines if line and line.strip()]


def _find_in_bucket(url: str, *, recursive: bool) -> list[str]:
    """Return the pictures at a URL: of a file, of a folder or of a pattern."""
    store: Any = open_store(url)
    try:
        if "*" in url:
            names = store.glob(url)
        elif store.isdir(url):
            names = store.find(url, maxdepth=None if recursive else 1)
        else:
            return [url]
        return sorted(store.unstrip_protocol(name) for name in names if _is_picture(name))
    except Exception as error:  # each store has its own errors: no access, no network
        raise InputError(f"{url} cannot be listed: {shorten(str(error))}") from error


def _is_picture(name: str) -> bool:
    base = name.rpartition("/")[2].lower()
    return not base.startswith(".") and os.path.splitext(base)[1] in SUFFIXES


def read_path(path: str) -> UInt8[ndarray, "h w 3"]:
    """Read a picture as `read_picture`, from a bucket if the path is a URL.

    Raises:
        InputError: It cannot be read.
        ImportError: The package of the bucket is not installed.
    """
    refuse_heic(path)
    if not is_url(path):
        if Path(path).exists() and not Path(path).is_file():  # a pipe would never end
            raise InputError(f"{path}: is not a file")
        return read_picture(Path(path))
    store: Any = open_store(path)
    try:
        content = store.cat_file(path)
    except Exception as error:  # each store has its own errors: no file, no access, no network
        raise InputError(f"{path}: cannot be read ({shorten(str(error))})") from error
    with damage_as_input_errors(path):
        return decode_image(content, where=path)
