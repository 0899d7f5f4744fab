"""The batch stream: a function of (seed, step) alone, whatever reads it and from where."""

import dataclasses
import gc
import re
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, SupportsIndex

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from segret_jax.config import DataConfig
from segret_jax.data.pipeline import (
    SPLIT_SEEDS,
    Batch,
    SkipFaulty,
    batches_from,
    class_table,
    open_source,
    training_dataset,
)
from segret_jax.data.sources import Sample
from segret_jax.errors import InputError

FAR = 1_000_000  # a step in the middle of an epoch
CONFIG = DataConfig(crop=(32, 32), resize_base=(48, 40), resize_ratio=(0.5, 2.0))


class Numbered:
    """Sample i has the labels i and i + 100: a batch tells by them what it was made of."""

    def __init__(self, count: int, *, faulty: int | None = None):
        self.count, self.faulty = count, faulty
        self.read: list[int] = []

    def __repr__(self) -> str:
        return f"Numbered({self.count})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> Sample:
        i = int(index)
        self.read.append(i)
        if i == self.faulty:
            raise InputError(f"/data/{i}.jpg: cannot be read as an image")
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        label = (i + 100 * rng.integers(0, 2, (40, 48))).astype(np.uint8)
        return {"image": image, "label": label, "name": str(i)}


def dataset(source: Any = None, *, batch_size: int = 4, seed: int = 7, **changes: Any) -> Any:
    shards = {k: changes.pop(k) for k in ("process_index", "process_count") if k in changes}
    config = dataclasses.replace(CONFIG, **changes)
    return training_dataset(
        source or Numbered(6), config, batch_size=batch_size, seed=seed, **shards
    )


def assert_same(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys() == {"image", "label", "index", "skipped"}
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key])


def numbers(batch: Batch) -> list[int]:
    """Which sample each label map came from; 255 where all of it is ignored."""
    return batch["label"].min((1, 2)).tolist()


# One stream


def test_a_batch_is_what_the_training_step_takes():
    batch = dataset()[0]
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((4, 32, 32, 3), "float32"),
        "label": ((4, 32, 32), "uint8"),
        "index": ((4,), "int32"),
        "skipped": ((4,), "int32"),
    }
    assert dataset()[3]["index"].tolist() == [0, 1, 2, 3]
    assert batch["skipped"].tolist() == [0, 0, 0, 0]


def test_iterating_indexing_and_starting_later_give_the_same_batches():
    stream = batches_from(dataset(), 0)
    iterated = [next(stream) for _ in range(5)]
    for k, batch in enumerate(iterated):
        assert_same(batch, dataset()[k])
    later = batches_from(dataset(), 3)
    assert_same(next(later), iterated[3])
    assert_same(next(later), iterated[4])
    assert not np.array_equal(iterated[0]["image"], iterated[1]["image"])


def workers_of_this_process() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [p for p in children if "spawn_main" in " ".join(p.cmdline())]  # others: a browser's


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_worker_processes_give_the_same_batches_and_end_with_the_iterator(workers):
    """On the second of two hosts, from a step that no run reaches by reading up to it."""
    part = dataset(process_index=1, process_count=2)
    assert workers_of_this_process() == []
    stream = batches_from(part, FAR, workers=workers)
    for k in range(FAR, FAR + 6):  # each worker in turn, and some again
        assert_same(next(stream), part[k])
    assert len(workers_of_this_process()) == workers
    del stream
    gc.collect()
    deadline = time.monotonic() + 30
    while workers_of_this_process() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of_this_process() == []


def test_a_killed_worker_is_reported_in_one_line():
    stream = batches_from(dataset(), 0, workers=1)
    next(stream)
    for worker in workers_of_this_process():
        worker.kill()
    with pytest.raises(InputError, match=r"worker was killed.*fewer data\.workers \(now 1\)"):
        deque(stream, maxlen=0)


def test_starting_at_a_far_step_reads_only_what_its_batch_needs():
    source = Numbered(6)
    far = dataset(source)[FAR]
    assert len(source.read) == 4
    assert Counter(source.read).keys() == Counter(numbers(far)).keys()
    source.read.clear()
    stream = batches_from(dataset(source), FAR)
    assert_same(next(stream), far)
    stream.close()
    assert len(source.read) <= 4 * 7  # this batch, four ahead, and one in each of two threads


def test_a_far_step_is_reached_as_fast_as_the_first():
    stream = dataset()

    def seconds(step: int) -> float:
        start = time.thread_time()
        stream[step]
        return time.thread_time() - start

    stream[0]
    assert min(seconds(FAR) for _ in range(9)) < 3 * min(seconds(0) for _ in range(9))


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_slices_of_several_hosts_interleave_to_the_stream_of_one(process_count):
    parts = [dataset(process_index=i, process_count=process_count) for i in range(process_count)]
    for k in (0, 1, 5, FAR):
        batches = [part[k] for part in parts]
        assert {len(batch["label"]) for batch in batches} == {4 // process_count}
        interleaved = {key: np.stack([batch[key] for batch in batches], 1) for key in batches[0]}
        together = {key: v.reshape(4, *v.shape[2:]) for key, v in interleaved.items()}
        assert_same(together, dataset()[k])


def test_seeds_change_order_and_augmentation():
    orders = {
        tuple(n for k in range(2) for n in numbers(dataset(Numbered(8), seed=seed)[k]))
        for seed in range(6)
    }
    assert len(orders) == 6
    single = [dataset(Numbered(1), batch_size=1, seed=seed)[0]["image"] for seed in (0, 1)]
    assert not np.array_equal(*single)


def test_every_sample_once_per_epoch_in_a_new_order_each_time():
    source = Numbered(8)
    batches = [dataset(source)[k] for k in range(6)]
    epochs = [numbers(batches[2 * e]) + numbers(batches[2 * e + 1]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(8))
    assert len(set(map(tuple, epochs))) == 3
    assert Counter(source.read) == dict.fromkeys(range(8), 3)


def test_epochs_that_do_not_divide_into_batches_go_on_without_a_gap():
    drawn = [n for k in range(5) for n in numbers(dataset(Numbered(5), batch_size=3)[k])]
    assert [sorted(drawn[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3


def test_an_image_is_augmented_again_in_each_epoch_and_at_each_place_of_a_batch():
    images = [
        image.tobytes()
        for k in range(3)
        for image in dataset(Numbered(1), batch_size=2)[k]["image"]
    ]
    assert len(set(images)) == 6


def test_opencv_is_limited_to_one_thread_once(monkeypatch):
    """Told by one thread while another is at work, it divides by zero: a crash now and then."""
    made = dataset()
    assert cv2.getNumThreads() == 1
    monkeypatch.setattr(cv2, "setNumThreads", None)
    assert len(next(batches_from(made, 0))["label"]) == 4


def test_importing_the_pipeline_leaves_opencv_as_it_is():
    code = "import cv2; cv2.setNumThreads(2); import segret_jax.data.pipeline; "
    command = [sys.executable, "-c", code + "print(cv2.getNumThreads())"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"2\n"


# Faulty samples


def test_a_faulty_sample_stops_the_stream_and_is_named():
    stream = batches_from(dataset(Numbered(8, faulty=3)), 0)
    with pytest.raises(InputError, match=re.escape("/data/3.jpg: cannot be read as an image")):
        [next(stream) for _ in range(2)]


def test_skipped_samples_are_ignored_counted_and_change_nothing_else(caplog):
    valid = dataset(Numbered(8))
    skipping = dataset(Numbered(8, faulty=3), on_error="skip")
    seen = 0
    for k in range(4):
        expected, actual = valid[k], skipping[k]
        faulty = np.array(numbers(expected)) == 3
        seen += faulty.sum()
        assert actual["skipped"].tolist() == faulty.tolist()
        assert (actual["label"][faulty] == 255).all()
        for key in ("image", "label"):
            assert actual[key].shape == expected[key].shape
            np.testing.assert_array_equal(actual[key][~faulty], expected[key][~faulty])
    assert seen == 2  # once in each of the two epochs
    assert caplog.messages == ["skipped: /data/3.jpg: cannot be read as an image"] * 2


def test_only_faults_of_the_data_are_skipped():
    class Broken(Numbered):
        def __getitem__(self, index: SupportsIndex) -> Sample:
            raise RuntimeError("a fault of the program")

    source = SkipFaulty(Broken(2))
    assert (len(source), repr(source)) == (2, "SkipFaulty(Numbered(2))")
    with pytest.raises(RuntimeError, match="a fault of the program"):
        source[0]


# Opening


def test_synthetic_splits_have_their_counts_and_do_not_overlap():
    config = DataConfig(synthetic_size=(32, 40), synthetic_train=5, synthetic_validation=3)
    training, validation = (open_source(config, split) for split in SPLIT_SEEDS)
    assert (len(training), len(validation)) == (5, 3)
    seen = {training[i]["image"].tobytes() for i in range(5)}
    assert len(seen) == 5
    assert seen.isdisjoint(validation[i]["image"].tobytes() for i in range(3))
    assert class_table(config).name == "synthetic"


def test_a_folder_is_opened_with_its_own_class_table(tmp_path: Path):
    for folder, suffix in (("images", ".jpg"), ("annotations", ".png")):
        path = tmp_path / folder / "validation" / f"a{suffix}"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 6), 150, np.uint8)).save(path)
    config = DataConfig(dataset="ade20k", root=str(tmp_path))
    assert open_source(config, "validation")[0]["label"].tolist() == [[149] * 6] * 4
    assert class_table(config).num_classes == 150
    with pytest.raises(
        InputError, match=r"there is no folder .*images/training; ade20k needs .*\nget"
    ):
        open_source(config, "training")


def test_a_dataset_without_a_root_is_looked_for_in_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        open_source(DataConfig(dataset="cityscapes"), "training")
    assert str(caught.value).startswith(f"there is no folder {tmp_path}/data/cityscapes; ")
    assert "--config.data.root=DIR" in str(caught.value)
    assert "leftImg8bit/train/**/*_leftImg8bit.png" in str(caught.value)


@pytest.mark.parametrize("open_by", [class_table, lambda c: open_source(c, "training")])
def test_an_unknown_dataset_names_the_nearest(open_by):
    with pytest.raises(InputError, match="unknown dataset 'cityscape': did you mean 'cityscapes'"):
        open_by(DataConfig(dataset="cityscape", root="/data"))


def test_an_unknown_dataset_lists_the_synthetic_one_too():
    with pytest.raises(InputError) as caught:
        class_table(DataConfig(dataset="syntetic"))
    assert "did you mean 'synthetic'?" in str(caught.value)
