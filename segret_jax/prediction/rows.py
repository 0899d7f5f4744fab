"""The Parquet files of `segret predict --ray`: one row for each picture, also if it is unreadable.

    path    string, absolute or a URL
    height, width     int32, of the upright picture; null with an error
    label   binary: a palette PNG of class ids; null with an error
    classes list of {id, name, share, mean_confidence}, of the classes that have pixels
    error   string; null if the picture was segmented

`_segret.json` beside them names the model and the settings, so that a second start with others is
refused.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from segret_jax.data.shards.remote import open_store
from segret_jax.errors import InputError, shorten
from segret_jax.prediction.outputs import source_info
from segret_jax.prediction.paths import absolute
from segret_jax.prediction.segmentation import Segmentation
from segret_jax.visualize.pictures import encode_png

CLASS = pa.struct(
    {
        "id": pa.int32(),
        "name": pa.string(),
        "share": pa.float32(),
        "mean_confidence": pa.float32(),
    }
)
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "label": pa.binary(),
        "classes": pa.list_(CLASS),
        "error": pa.string(),
    }
)
SETTINGS = "_segret.json"  # readers of Parquet folders skip names that begin with "_"
FILE = re.compile(r"_[0-9a-f]{32}_\d+-\d+\.parquet$")  # as Ray names files
NUM_READERS = 16


def row_of(path: str, result: Segmentation) -> dict[str, Any]:
    """Return the row of a picture."""
    height, width = result.label_map.shape
    info = source_info(path.rpartition("/")[2])
    return {
        "path": path,
        "height": height,
        "width": width,
        "label": encode_png(result.label_map, table=result.classes, info=info),
        "classes": [{key: one[key] for key in CLASS.names} for one in result.classes_found()],
    }


def error_row(path: str, error: Exception) -> dict[str, Any]:
    """Return the row of a picture that cannot be segmented."""
    return {"path": path, "classes": [], "error": str(error)}


class RowFolder:
    """A folder of Parquet files, local or in a bucket.

    Ray writes each file once, under its own name. A file without its end, left by a process that
    was killed, does not count and is deleted.
    """

    def __init__(self, name: str):
        """Create the folder; raise InputError if it is not writable."""
        self.name, self.path = name, absolute(name).rstrip("/")
        self.store: Any = open_store(self.path)
        self.store_path = self.store._strip_protocol(self.path)
        probe = f"{self.path}/_{uuid4().hex}"
        try:
            self.store.makedirs(self.path, exist_ok=True)
            self.store.pipe_file(probe, b"_")
            self.store.rm_file(probe)
        except Exception as error:  # each store has its own errors
            reason = getattr(error, "strerror", None) or shorten(str(error))
            raise InputError(f"cannot write to {name}: {reason}; give another --out") from error

    def claim(self, settings: dict[str, Any]) -> None:
        """Store the model's settings; raise InputError if the folder has rows made with others."""
        file, ours = f"{self.path}/{SETTINGS}", json.dumps(settings, sort_keys=True, indent=1)
        if not self.store.exists(file):
            if self._files():
                raise InputError(f"{self.name} holds other Parquet files: give another --out")
            self.store.pipe_file(file, ours.encode())
            return
        try:
            theirs = dict(json.loads(self.store.cat_file(file)))
        except (ValueError, TypeError) as error:
            remedy = "give another --out"
            raise InputError(f"{self.name}/{SETTINGS} is damaged: {remedy}") from error
        now = json.loads(ours)
        if different := [key for key in sorted(theirs | now) if theirs.get(key) != now.get(key)]:
            key = different[0]
            there, here = (shorten(str(one.get(key, "not set"))) for one in (theirs, now))
            raise InputError(
                f"{self.name} was begun with another {key} ({there} there, {here} here): "
                "give another --out"
            )

    def finished(self) -> dict[str, bool]:
        """Return {path: whether it failed} of all rows, and delete the files without an end."""
        found: dict[str, bool] = {}
        with ThreadPoolExecutor(NUM_READERS) as pool:
            for paths, failed in pool.map(self._read, self._files()):
                found.update(zip(paths, failed, strict=True))
        return found

    def failures(self) -> Iterator[str]:
        """Yield the errors."""
        for file in self._files():
            with self.store.open(file, "rb") as stream:
                errors = pq.read_table(stream, columns=["error"])["error"]
            yield from errors.drop_null().to_pylist()

    def _files(self) -> list[str]:
        self.store.invalidate_cache()
        names = self.store.ls(self.path, detail=False)  # not glob: names may have brackets
        return sorted(name for name in names if name.endswith(".parquet"))

    def _read(self, file: str) -> tuple[list[str], list[bool]]:
        with self.store.open(file, "rb") as stream:
            try:
                parquet = pq.ParquetFile(stream)
            except pa.ArrowInvalid as error:
                if not FILE.search(file):
                    raise InputError(f"{file} is damaged: delete it") from error
                self.store.rm_file(file)
                return [], []
            if parquet.schema_arrow.names != SCHEMA.names:
                raise InputError(f"{file} is of another program: move it, or give another --out")
            table = parquet.read(["path", "error"])
        return table["path"].to_pylist(), table["error"].is_valid().to_pylist()
