"""Download of official archives that are free: what `prepare --download` does.

A transfer resumes where it broke off, in the same run or the next. Only a file with the known hash
is unpacked: beside its place, and moved there whole.
"""

import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pooch
import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util.retry import Retry

from segret_jax.data.datasets import DatasetSpec
from segret_jax.errors import InputError

ARCHIVES = {
    "ade20k": (  # 967 MB
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
    )
}
"""URL and SHA-256 of a zip file that holds the folder `DatasetSpec.archive`."""

_RETRIES = Retry(5, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504))
_CHUNK = 1 << 16  # what is lost where a connection breaks off
_TIMEOUT = 30.0  # seconds without a byte


def download(spec: DatasetSpec, folder: Path) -> None:
    """Download and unpack a dataset's official archive in `folder`, unless it is there already.

    Args:
        spec: The dataset.
        folder: The folder to download to.

    Raises:
        InputError: The dataset has no free archive, the transfer fails for good, or the file is not
            the known one.
    """
    if spec.name not in ARCHIVES:
        found = f"get {spec.download_hint}, and unpack it in {folder}"
        raise InputError(f"{spec.name} has no archive that is free to download: {found}")
    folder = folder.expanduser()
    if not (folder / spec.archive).is_dir():
        unpack(fetch(*ARCHIVES[spec.name], folder), folder / spec.archive)


def fetch(url: str, sha256: str, folder: Path) -> Path:
    """Download a file, or resume where an earlier run stopped; return its path."""
    path = folder / url.rsplit("/", 1)[1]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        _receive_all(url, part)
        part.replace(path)
    if pooch.file_hash(str(path)) != sha256:
        raise InputError(f"{path} has not the SHA-256 {sha256} of {url}; delete it and run again")
    return path


def _receive_all(url: str, part: Path) -> None:
    """Take a transfer up again as long as it brings bytes."""
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=_RETRIES))
        while True:
            start = part.stat().st_size if part.exists() else 0
            try:
                return _receive(session, url, part, start)
            except requests.RequestException as error:
                if not part.exists() or part.stat().st_size <= start:
                    raise InputError(
                        f"{url}: {error}; run the same command again to resume from {part}"
                    ) from error


def _receive(session: requests.Session, url: str, part: Path, start: int) -> None:
    """Append what is lacking; raise what requests raises where the connection breaks."""
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with session.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response:
        if start and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is lacking; the hash tells whether there is too much
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0
        total = start + int(response.headers.get("Content-Length", 0))
        progress = {"desc": part.stem, "initial": start, "total": total or None}
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(**progress, unit="B", unit_scale=True, dynamic_ncols=True) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                bar.update(file.write(chunk))


def unpack(path: Path, target: Path) -> None:
    """Unpack the folder `target.name` of a zip file to `target`, which appears whole or not at all.

    Args:
        path: The zip file.
        target: The folder to create.

    Raises:
        InputError: The file would write outside its folder.
    """
    scratch = target.with_name(f"{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # of an interrupted run
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            parts = PurePosixPath(name).parts
            if parts[0] != target.name or ".." in parts:
                raise InputError(f"{path} would write outside {target.name} ({name}); delete it")
        for name in tqdm(file.namelist(), "unpacking", unit="file", dynamic_ncols=True):
            file.extract(name, scratch)
    (scratch / target.name).replace(target)
    scratch.rmdir()
