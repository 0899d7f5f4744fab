"""Writing and reading of prepared records with TensorFlow Datasets (without TensorFlow).

The only module that imports `tensorflow_datasets`; import it late, where records are written or
read, since that takes half a second.
"""

import contextlib
import io
import os
import tempfile
import zlib
from collections.abc import Generator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from segret_jax.data.prefetch import prefetch
from segret_jax.data.shards.manifest import VERSION
from segret_jax.data.sources import RecordSource


class PairBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes the pairs of folders as records: name, both files as they are, and a checksum.

    Every pair is decoded and mapped first; the InputError of a faulty one ends the run. Afterward
    `sizes` holds the images' (height, width) by split, in the order of the records.
    """

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # nothing is downloaded by TFDS; looking for it needs importlib_resources

    def __init__(self, *, name: str, sources: Mapping[str, RecordSource], data_dir: str) -> None:
        self.name = name
        self.sources = sources
        self.sizes: dict[str, list[tuple[int, int]]] = {}
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "name": tfds.features.Text(),
                "image": tfds.features.Text(),  # bytes, unchanged
                "label": tfds.features.Text(),
                "checksum": tfds.features.Scalar(np.uint32),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Generator]:
        return {split: self._generate_examples(split) for split in self.sources}

    def _generate_examples(self, split: str) -> Generator[tuple[int, dict[str, Any]]]:
        """Yield the examples in order, decoded ahead by a few threads, and note their sizes."""
        source, sizes = self.sources[split], self.sizes.setdefault(split, [])

        def read(index: int) -> tuple[dict[str, Any], tuple[int, int]]:
            record = source.record(index)
            height, width = source.decode(record)["label"].shape
            name = record.name.encode()
            content = {"name": name, "image": record.image, "label": record.label}
            return content | {"checksum": checksum(*content.values())}, (height, width)

        workers = os.cpu_count() or 1
        results = prefetch(read, range(len(source)), workers=workers, buffer_size=4 * workers)
        progress = tqdm(results, split, len(source), unit="pair", dynamic_ncols=True)
        for index, (example, size) in enumerate(progress):
            sizes.append(size)
            yield index, example

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        """Write the shards of all splits one after another, in the order of the sources.

        TFDS's own sorts the records of a split first: in memory, and past 1 GB in files, for which
        it imports TensorFlow.
        """
        return [
            self._write_split(split, examples, download_config.num_shards)
            for split, examples in self._split_generators(dl_manager).items()
        ]

    def _write_split(self, split: str, examples: Generator, num_shards: int) -> tfds.core.SplitInfo:
        template = self._get_filename_template(split)
        count, num_bytes = len(self.sources[split]), 0
        bounds = [round(count * shard / num_shards) for shard in range(num_shards + 1)]
        lengths = [end - start for start, end in pairwise(bounds)]
        with contextlib.closing(examples):
            for shard, length in enumerate(lengths):
                path = template.sharded_filepath(shard_index=shard, num_shards=num_shards)
                writer = ArrayRecordWriter(str(path), "group_size:1")  # for random access
                for _, example in islice(examples, length):
                    stored = self.info.features.serialize_example(example)
                    num_bytes += len(stored)
                    writer.write(stored)
                writer.close()
        return tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template
        )


def checksum(name: bytes, image: bytes, label: bytes) -> int:
    """Return the CRC-32 of a record's content."""
    return zlib.crc32(label, zlib.crc32(image, zlib.crc32(name)))


def write(
    name: str, sources: Mapping[str, RecordSource], folder: Path, *, shards: int
) -> PairBuilder:
    """Write all records to `folder` (DATA_DIR/NAME/VERSION), each split in `shards` files.

    Returns the builder, with sizes and descriptions. Raises OSError for a full disk.
    """
    builder = PairBuilder(name=name, sources=sources, data_dir=str(folder.parents[1]))
    config = tfds.download.DownloadConfig(num_shards=shards)
    quiet = contextlib.redirect_stdout(io.StringIO())  # TFDS calls it a download
    try:
        with quiet, tempfile.TemporaryDirectory() as unused:  # for what TFDS would download
            builder.download_and_prepare(download_dir=unused, download_config=config)
    except RuntimeError as error:  # ArrayRecord's, such as for a full disk
        reason = str(error).partition("\n")[0]
        raise OSError(f"writing {folder} failed: {reason}") from error
    return builder


def open_records(folder: str, split: str, *, data_dir: str) -> Any:
    """Return the random-access records of a split, each a dict.

    `folder` holds the descriptions (dataset_info.json), `data_dir` the shards.
    """
    builder = tfds.builder_from_directory(folder)
    builder.info.update_data_dir(data_dir)
    return builder.as_data_source(split=split)
