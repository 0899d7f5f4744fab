"""Download of official archives that are free: what `prepare --download` does.

Pooch checks the hash and moves the file into place; the transfer itself goes on where it broke
off, which Pooch's own does not. An archive is unpacked beside its place and moved there whole.
"""

import shutil
import stat
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests
import urllib3
from tqdm import tqdm

from segret_jax.data.datasets import DatasetSpec
from segret_jax.errors import InputError

_CHUNK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A zip file with one folder in it, and its SHA-256."""

    url: str
    sha256: str
    folder: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]


ARCHIVES = {
    "ade20k": Archive(
        url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",  # 967 MB
        sha256="7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
        folder="ADEChallengeData2016",
    )
}


def download(spec: DatasetSpec, folder: Path) -> None:
    """Download and unpack a dataset's official archive in `folder`, unless it is there already.

    Raises InputError where the dataset has no free archive, or the transfer fails for good.
    """
    if spec.name not in ARCHIVES:
        raise InputError(
            f"{spec.name} has no archive that is free to download: get {spec.download_hint}, and "
            f"unpack it in {folder}"
        )
    archive, folder = ARCHIVES[spec.name], folder.expanduser()
    if not (folder / archive.folder).is_dir():
        unpack(fetch(archive, folder), folder / archive.folder)


def fetch(archive: Archive, folder: Path, *, pause: float = 2.0) -> Path:
    """Download an archive, or go on where an earlier run stopped; return its path.

    A transfer that breaks off is taken up again after `pause` seconds, five times without a byte
    at most. Raises InputError if it does not succeed, or if the file is not the known one.
    """
    pooch.get_logger().setLevel("ERROR")
    try:
        path = pooch.retrieve(
            archive.url,
            known_hash=f"sha256:{archive.sha256}",
            fname=archive.file_name,
            path=folder,
            downloader=ResumingDownloader(folder / f"{archive.file_name}.part", pause=pause),
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{archive.url} is not the known file of SHA-256 {archive.sha256}; it was deleted: run "
            "the command again, and if it comes again, the server has another version"
        ) from error
    return Path(path)


class ResumingDownloader:
    """Downloads for Pooch by HTTP, into `part` first, and goes on from the bytes that are there."""

    def __init__(self, part: Path, *, pause: float, attempts: int = 5) -> None:
        self._part, self._pause, self._attempts = part, pause, attempts

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Bring the whole file to `output_file`; InputError once no attempt brings a byte."""
        failures = 0
        while True:
            size = self._size()
            try:
                self._transfer(url)
                break
            except requests.exceptions.RequestException as error:
                refused = error.response is not None and error.response.status_code < 500
                failures = failures + 1 if self._size() <= size else 1
                if refused or failures >= self._attempts:
                    raise InputError(
                        f"{url}: {_reason(error)}; {self._size() / 1e6:.1f} MB of it are in "
                        f"{self._part}: run the same command again to go on from there"
                    ) from error
                time.sleep(self._pause)
        self._part.replace(output_file)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _transfer(self, url: str) -> None:
        """Append what is lacking; raise what requests raises where the connection breaks."""
        start = self._size()
        headers = {"Range": f"bytes={start}-"} if start else {}
        headers["Accept-Encoding"] = "identity"
        with requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total == str(start):
                    return  # it was all there
                self._part.unlink()
                raise requests.exceptions.ConnectionError("the part was longer than the file")
            response.raise_for_status()
            goes_on = response.status_code == requests.codes.partial_content
            self._receive(response, start if goes_on else 0)

    def _receive(self, response: requests.Response, start: int) -> None:
        length = int(response.headers.get("Content-Length", 0))
        with (
            self._part.open("ab" if start else "wb") as file,
            tqdm(
                total=start + length or None, initial=start, desc=self._part.stem,
                unit="B", unit_scale=True, dynamic_ncols=True,
            ) as bar,
        ):  # fmt: skip
            try:
                # Not iter_content: it loses the chunk in which the connection breaks off.
                while chunk := response.raw.read1(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            except urllib3.exceptions.HTTPError as error:
                raise requests.exceptions.ConnectionError(error) from error


def _reason(error: requests.exceptions.RequestException) -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    return f"the connection breaks off ({type(error).__name__})"


def unpack(path: Path, target: Path) -> None:
    """Unpack the folder `target.name` of a zip file to `target`, which appears whole or not at all.

    Raises InputError for a damaged file, or one that would write outside its folder.
    """
    scratch = target.with_name(f"{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # of an interrupted run
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            for member in members:
                _refuse_outside(member, path, target.name)
            for member in tqdm(members, desc="unpacking", unit="file", dynamic_ncols=True):
                file.extract(member, scratch)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise InputError(f"{path} is damaged ({error}); delete it and run again") from error
    (scratch / target.name).replace(target)
    scratch.rmdir()


def _refuse_outside(member: zipfile.ZipInfo, path: Path, folder: str) -> None:
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    linked = stat.S_ISLNK(member.external_attr >> 16)
    if parts[:1] != (folder,) or ".." in parts or linked:
        raise InputError(
            f"{path} would write outside {folder} ({member.filename}); it is not the official "
            "archive, delete it"
        )
