"""Speed of the training input on one core: python -m benchmarks.data [--images DIR].

Prints, as Markdown, images per second and the share of each stage for two recipes:

    ade20k      JPEG photographs of 683x512 (width x height), crops as configs/ade_tiny.py has them
    cityscapes  PNG photographs of 2048x1024, crops as configs/cityscapes_tiny.py has them

What runs is the pipeline of training itself, with a clock around its stages. The photographs are
generated scenes with the grain of real ones, or those of `--images`, scaled to the size; labels
are always those of the scenes. All times are of the processor, not of the clock on the wall, so
that other work on the machine disturbs them little; files are read from memory.
"""

import argparse
import datetime
import io
import itertools
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import grain
import numpy as np
from PIL import Image, features

from configs import ade_tiny, cityscapes_tiny
from segret_jax.cli import program
from segret_jax.config import Config
from segret_jax.data import sources, transforms
from segret_jax.data.datasets import get_dataset
from segret_jax.data.decode import decode_image
from segret_jax.data.pipeline import training_dataset
from segret_jax.data.sources import Record, RecordSource
from segret_jax.data.synthetic import SyntheticSource
from segret_jax.errors import InputError


@dataclass(frozen=True)
class Case:
    """A recipe and its photographs: (height, width) and Pillow's arguments of the file."""

    config: Config
    num_samples: int
    size: tuple[int, int]
    file: dict[str, Any]


CASES = {
    "ade20k": Case(ade_tiny.get_config(), 20_210, (512, 683), {"format": "JPEG", "quality": 95}),
    "cityscapes": Case(cityscapes_tiny.get_config(), 2_975, (1024, 2048), {"format": "PNG"}),
}
STAGES = {
    "decode image": (sources, "decode_turned"),
    "decode label": (sources, "decode_label"),
    "map label": (sources, "map_label"),
    "resize": (transforms, "random_resize"),
    "crop": (transforms, "random_crop"),
    "flip": (transforms, "random_flip"),
    "photometric": (transforms, "photometric_distortion"),
    "normalize": (transforms, "normalize"),
    "pad": (transforms, "pad_to"),
}
REST = "order, random numbers, batch"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--images", type=Path, help="folder of photographs (.jpg, .png)")
    parser.add_argument("--photos", type=int, default=16, help="different photographs per case")
    parser.add_argument("--batches", type=int, default=4, help="per round")
    parser.add_argument("--rounds", type=int, default=7, help="of the same batches")
    args = parser.parse_args(argv)
    print("\n".join(machine(argv)))
    for name in args.case:
        photographs = Photographs(CASES[name], args.photos, args.images)
        rounds = measure(photographs, CASES[name].config, args.batches, args.rounds)
        print("\n".join(["", *report(name, photographs, rounds)]), flush=True)


class Photographs(RecordSource):
    """Encoded photographs of a case's size, with labels, in memory."""

    def __init__(self, case: Case, count: int, folder: Path | None) -> None:
        self.spec = get_dataset(case.config.data.dataset)
        self.layout = self.spec.layouts[0]
        self.split = "training"
        # As many as the dataset has: Grain shuffles few samples slowly, 2 ms for each of ten.
        self.names = [str(i) for i in range(case.num_samples)]
        scenes = SyntheticSource(seed=2, num_images=count, size=case.size)
        stored = np.array([np.argmax(self.layout.lookup == k) for k in range(256)], np.uint8)
        photographs = scaled(folder, case.size) if folder else None
        self.files = []
        for scene in map(scenes.__getitem__, range(count)):
            image = next(photographs) if photographs else scene["image"]
            label = encoded(stored[scene["label"]], format="PNG")
            self.files.append((encoded(image, **case.file), label))

    def record(self, index: int) -> Record:
        image, label = self.files[index % len(self.files)]
        name = self.names[index]
        return Record(name, image, label, name, name)


def scaled(folder: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the photographs below `folder`, scaled to (height, width), over and over."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    if not paths:
        raise InputError(f"there is no photograph (.jpg, .png) below --images {folder}")
    for path in itertools.cycle(paths):
        image = Image.fromarray(decode_image(path))
        yield np.array(image.resize(size[::-1], Image.Resampling.LANCZOS))


def encoded(pixels: np.ndarray, **file: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **file)
    return buffer.getvalue()


def measure(
    source: RecordSource, config: Config, num_batches: int, num_rounds: int
) -> list[dict[str, float]]:
    """Return milliseconds per image of each stage, one dict per round of the same batches."""
    batch_size = config.train.batch_size
    dataset = training_dataset(source, config.data, batch_size=batch_size, seed=0)
    seconds = dict.fromkeys(STAGES, 0.0)
    rounds = []
    with ExitStack() as stack:
        for stage, (module, name) in STAGES.items():
            timed = with_clock(getattr(module, name), stage, seconds)
            stack.enter_context(mock.patch.object(module, name, timed))
        for _ in range(1 + num_rounds):
            seconds.update(dict.fromkeys(STAGES, 0.0))
            start = time.process_time()
            for k in range(num_batches):
                dataset[k]
            whole = time.process_time() - start
            scale = 1000 / (num_batches * batch_size)
            stages = seconds | {REST: whole - sum(seconds.values())}
            rounds.append({stage: scale * value for stage, value in stages.items()})
    return rounds[1:]  # the first warms up


def with_clock(function: Callable, stage: str, seconds: dict[str, float]) -> Callable:
    """Return `function` that adds the time of each call to `seconds[stage]`."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = function(*args, **kwargs)
        seconds[stage] += time.process_time() - start
        return result

    return timed


def machine(argv: list[str]) -> list[str]:
    """Return what the figures must be read with."""
    info = Path("/proc/cpuinfo")
    names = (
        re.findall("model name\\s*: (.*)", info.read_text(encoding="utf-8"))
        if info.exists()
        else []
    )
    cpu = names[0] if names else platform.processor()
    jpeg, zlib = features.version("libjpeg_turbo"), features.version("zlib")
    return [
        f"{datetime.date.today()}, one core of {os.cpu_count()}, {cpu}. "
        f"Python {platform.python_version()}, NumPy {np.__version__}, OpenCV {cv2.__version__}, "
        f"Pillow {Image.__version__} (libjpeg-turbo {jpeg}, zlib {zlib}), "
        f"Grain {grain.__version__}. Processor time.",
        "",
        f"    python -m benchmarks.data {' '.join(argv)}".rstrip(),
    ]


def report(name: str, photographs: Photographs, rounds: list[dict[str, float]]) -> list[str]:
    """Return a table of the median round."""
    case, totals = CASES[name], [sum(stages.values()) for stages in rounds]
    (height, width), crop = case.size, case.config.data.crop
    image, label = (
        np.mean([len(f) for f in kind]) / 1e3 for kind in zip(*photographs.files, strict=True)
    )
    total = float(np.median(totals))
    median = {stage: float(np.median([r[stage] for r in rounds])) for stage in rounds[0]}
    return [
        f"## {name}: {1e3 / total:.0f} images/s on one core",
        "",
        f"{width}x{height} {case.file['format']} of {image:.0f} kB, labels of {label:.0f} kB, "
        f"crop {crop[1]}x{crop[0]} (width x height); {len(rounds)} rounds, from "
        f"{1e3 / max(totals):.0f} to {1e3 / min(totals):.0f} images/s.",
        "",
        "| stage | ms per image | share |",
        "| --- | --- | --- |",
        *(f"| {s} | {ms:.2f} | {100 * ms / total:.0f}% |" for s, ms in median.items()),
        f"| whole | {total:.2f} | |",
    ]


if __name__ == "__main__":
    program.run(main)
