"""An endless stream of training batches from (image, label) pairs, with Grain.

Order and augmentation are functions of (seed, step) alone: batch k is element k of a lazy
`MapDataset`, whatever the number of hosts, workers or restarts. A run resumes by asking for the
batches from its step on; no loader state is ever saved.
"""

import logging
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any, SupportsIndex

import grain
import numpy as np
from absl import flags

from segret_jax.config import DataConfig
from segret_jax.data.class_table import IGNORE, ClassTable, load_class_table
from segret_jax.data.datasets import SYNTHETIC, get_dataset
from segret_jax.data.shards.prepared import open_files
from segret_jax.data.shift_signs import quick_check
from segret_jax.data.sources import Sample, Samples, Source
from segret_jax.data.synthetic import SyntheticSource
from segret_jax.data.transforms import train_transform, use_one_opencv_thread
from segret_jax.data.workers import TERMINATION_SIGNALS, blocked_signals, exit_with_parent
from segret_jax.errors import InputError

Batch = dict[str, np.ndarray]
SKIPPED = ""  # the name of a sample that could not be read
SPLIT_SEEDS = {"training": 0, "validation": 1}  # of the synthetic scenes: never the run's seed


def class_table(config: DataConfig) -> ClassTable:
    """Return the class table of the configured dataset."""
    if config.dataset == SYNTHETIC:
        return load_class_table(SYNTHETIC)
    return get_dataset(config.dataset).class_table


def open_source(config: DataConfig, split: str) -> Source:
    """Open a split of the configured dataset.

    Args:
        config: The settings that name the dataset and its root.
        split: "training" or "validation".

    Raises:
        InputError: Files are missing or unpaired, or some labels, of a sample that is read, cannot
            hold the ids of the class table.
    """
    if config.dataset == SYNTHETIC:
        counts = {"training": config.synthetic_train, "validation": config.synthetic_validation}
        seed, size = SPLIT_SEEDS[split], config.synthetic_size
        return SyntheticSource(seed=seed, num_images=counts[split], size=size)
    spec = get_dataset(config.dataset)
    try:
        source = open_files(spec, config.root or f"data/{spec.name}", split)
    except InputError as error:
        hint = "--config.data.root=DIR names another folder; `segret demo` needs no data"
        raise InputError(f"{error}\n{hint}") from error
    quick_check(source)
    return source


class SkipFaulty:
    """A source that gives faulty samples as ignored images, so that the order stays the same."""

    def __init__(self, source: Samples):
        self.source = source

    def __repr__(self) -> str:
        return f"SkipFaulty({self.source!r})"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        try:
            return self.source[index]
        except InputError as error:
            logging.warning("skipped: %s", error)
            image, label = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), IGNORE, np.uint8)
            return {"image": image, "label": label, "name": SKIPPED}


class Augment(grain.transforms.RandomMap):
    """Turn a sample into a training crop."""

    def __init__(self, config: DataConfig):
        self.config = config

    def random_map(self, element: Sample, rng: np.random.Generator) -> dict[str, Any]:
        image, label = train_transform(
            element["image"], element["label"], rng,
            crop=self.config.crop,
            base=self.config.resize_base,
            ratio_range=self.config.resize_ratio,
        )  # fmt: skip
        return {"image": image, "label": label, "skipped": np.int32(element["name"] == SKIPPED)}


def training_dataset(
    source: Samples,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Return the lazy, endless sequence whose element k is batch k.

    Host i takes every n-th sample of the one global order, after augmentation was fixed.

    Args:
        source: The samples.
        config: The settings: crop, resizing, and whether faulty samples are skipped.
        batch_size: The images of all hosts together.
        seed: The seed of order and augmentation.
        process_index: The number of this host.
        process_count: The number of hosts; it divides `batch_size`.

    Returns:
        Batches of b = batch_size / process_count: "image" float32 [b, h, w, 3] (normalized),
        "label" uint8 [b, h, w], "index" int32 [b] (position in the global batch), and "skipped"
        int32 [b] (1 for samples that could not be read).
    """
    use_one_opencv_thread()
    if config.on_error == "skip":
        source = SkipFaulty(source)
    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(Augment(config))
        .map_with_index(lambda i, sample: sample | {"index": np.int32(i % batch_size)})
        .slice(slice(process_index, None, process_count))
        .batch(batch_size // process_count, drop_remainder=True)
    )


def _prepare_worker(index: int, count: int) -> None:
    use_one_opencv_thread()
    exit_with_parent(*TERMINATION_SIGNALS)


def batches_from(
    dataset: grain.MapDataset, step: int, *, workers: int = 0
) -> Generator[Batch, None, None]:
    """Iterate over the batches from `step` on; close the iterator to end its workers.

    Args:
        dataset: The result of `training_dataset`.
        step: The index of the first batch.
        workers: The number of processes that prepare batches; with 0, threads do.

    Raises:
        InputError: A worker process is killed, for example for lack of memory.
    """
    read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    iterable = dataset[step:].to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_prepare_worker
        )
    batches = iter(iterable)
    try:
        with blocked_signals(*TERMINATION_SIGNALS) if workers else nullcontext():
            first = next(batches)  # starts the workers
        yield first
        yield from batches
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise InputError(
            "a data worker was killed, most often for lack of memory: try again, with fewer "
            f"data.workers (now {workers})"
        ) from error
    finally:
        batches.close()
