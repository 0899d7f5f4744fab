"""What is measured, in order of value, and how long each job takes at the least."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from segret_jax.errors import InputError

START = 10.0  # seconds, for imports and the device
VARIANTS = ("tiny", "base", "small", "large")  # in order of value
# At the least, on an H100 beside others: compilation of a train step, by XLA and by torch.compile.
COMPILE_TRAIN = {"tiny": 45.0, "base": 110.0, "small": 70.0, "large": 120.0}
COMPILE_TORCH = {"tiny": 40.0, "base": 80.0, "small": 60.0, "large": 80.0}
COMPILE_FORWARD = 20.0
INFERENCE = ((512, 512, 1), (512, 512, 32), (1024, 2048, 1))  # height, width, batch
# Form, height, width, heads, head width: lines of tiny and base at 512x512, then odd sizes.
LINES = (
    ("decomposed", 128, 128, 4, 16), ("whole", 32, 32, 8, 32), ("decomposed", 64, 64, 4, 32),
    ("whole", 16, 16, 16, 32), ("decomposed", 32, 32, 10, 32), ("decomposed", 45, 45, 5, 16),
    ("whole", 30, 33, 8, 32), ("decomposed", 37, 150, 7, 16), ("whole", 1, 13, 4, 32),
    ("decomposed", 13, 1, 4, 16),
)  # fmt: skip
RETENTION = tuple(itertools.product(LINES, ("float32", "bfloat16")))
TINY_RETENTION = (
    (("decomposed", 9, 11, 2, 16), "float32"), (("whole", 9, 11, 2, 32), "bfloat16")
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Something to prepare and to measure; it gives `figures`.

    Seconds are estimates of the least time that `compile` (beside others) and `run` (alone) take.
    """

    figures: tuple[str, ...]
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    compile: float = 0.0
    run: float = 2.0


@dataclass(frozen=True)
class Worker:
    """Jobs of one process: as a rule those of one variant in one framework."""

    name: str
    framework: str  # ours | original
    jobs: tuple[Job, ...]

    @property
    def seconds(self) -> float:
        """Return how long it takes at the least; its programs are compiled at the same time."""
        return (
            START + max(job.compile for job in self.jobs) + sum(job.run for job in self.jobs)
            if self.jobs
            else 0.0
        )

    def within(self, seconds: float) -> "Worker":
        """Return the worker with its first jobs, as many as fit into the time."""
        worker = self
        while worker.jobs and worker.seconds > seconds:
            worker = dataclasses.replace(worker, jobs=worker.jobs[:-1])
        return worker

    def without(self, figures: Collection[str]) -> "Worker":
        """Return the worker with the jobs that have a figure which is not among `figures`."""
        jobs = tuple(job for job in self.jobs if not set(job.figures) <= set(figures))
        return dataclasses.replace(self, jobs=jobs)


def workers(*, dry_run: bool = False) -> list[Worker]:
    """Return all workers, most valuable first; those of a dry run have tiny sizes."""
    if dry_run:
        toys = [_ours("toy"), _original("toy")]
        return [_peaks(size=256), _kernels(dry_run=True), *toys, _tests(dry_run=True)]
    pairs = [(_ours(variant), _original(variant)) for variant in VARIANTS]
    return [_peaks(size=0), _kernels(), *(worker for pair in pairs for worker in pair), _tests()]


def select(all_workers: Iterable[Worker], names: Collection[str]) -> list[Worker]:
    """Keep the jobs whose figures are named, whole or by a first part such as "train/tiny".

    Raises InputError for a name that no figure has.
    """
    all_workers = list(all_workers)
    figures = [f for worker in all_workers for job in worker.jobs for f in job.figures]
    for name in names:
        if not any(_is_named(figure, name) for figure in figures):
            known = sorted({figure.split("/")[0] for figure in figures})
            raise InputError(f"--only {name} is no figure; they begin with {', '.join(known)}")
    kept = []
    for worker in all_workers:
        jobs = tuple(
            job
            for job in worker.jobs
            if not names or any(_is_named(f, name) for f in job.figures for name in names)
        )
        kept.append(dataclasses.replace(worker, jobs=jobs))
    return [worker for worker in kept if worker.jobs]


def _is_named(figure: str, name: str) -> bool:
    return figure == name or figure.startswith(f"{name}/")


def _peaks(*, size: int) -> Worker:
    """A process of its own, so that they are known first."""
    return Worker("peaks", "ours", (Job(("peaks",), "peaks", {"size": size}, run=3),))


def _kernels(*, dry_run: bool = False) -> Worker:
    jobs = []
    for (form, h, w, heads, width), dtype in TINY_RETENTION if dry_run else RETENTION:
        name = f"kernels/{form} {h}x{w}, {heads} heads of {width}, {dtype}"
        settings = {
            "form": form, "size": (h, w), "heads": heads, "width": width, "dtype": dtype,
            "batch": 2 if dry_run else 16, "repeats": 1 if dry_run else 20,
        }  # fmt: skip
        jobs.append(Job((name,), "kernels", settings, compile=10, run=0.5))
    return Worker("kernels", "ours", tuple(jobs))


def _ours(variant: str) -> Worker:
    dry_run = variant == "toy"
    size, batch = ((32, 32), 2) if dry_run else ((512, 512), 16)
    # On CPU bfloat16 takes twice as long to compile.
    dtype, repeats = ("float32", 2) if dry_run else ("bfloat16", 20)
    train = Job(
        (f"train/{variant}/ours", f"parts/{variant}"),
        "train",
        {"variant": variant, "size": size, "batch": batch, "dtype": dtype, "repeats": repeats},
        compile=COMPILE_TRAIN.get(variant, 0),
        run=10,
    )
    golden = "tiny" if dry_run else variant
    goldens = Job(
        (f"goldens/{golden}",), "goldens", {"variant": golden}, compile=COMPILE_FORWARD, run=2
    )
    inference = tuple(
        Job(
            (f"inference/{variant}/ours/{_shape(h, w, b)}",),
            "inference",
            {"variant": variant, "size": (h, w), "batch": b, "dtype": dtype, "repeats": repeats},
            compile=COMPILE_FORWARD,
        )
        for h, w, b in _inference_shapes(dry_run=dry_run)
    )
    return Worker(f"{variant} ours", "ours", (train, goldens, *inference))


def _original(variant: str) -> Worker:
    dry_run = variant == "toy"
    name = "tiny" if dry_run else variant
    size, batch = ((64, 64), 2) if dry_run else ((512, 512), 16)
    jobs = []
    for mode, compiled in (("train", False), ("train", True), ("inference", False),
                           ("inference", True)):  # fmt: skip
        framework = "torch.compile" if compiled else "original"
        shapes = [(*size, batch)] if mode == "train" else _inference_shapes(dry_run=dry_run)
        for h, w, b in shapes:
            ending = "" if mode == "train" else f"/{_shape(h, w, b)}"
            settings = {
                "variant": name, "mode": mode, "size": (h, w), "batch": b, "dtype": "bfloat16",
                "compiled": compiled, "repeats": 2 if dry_run else 20,
            }  # fmt: skip
            seconds = COMPILE_TORCH.get(variant, 0) if compiled else 3
            figure = f"{mode}/{variant}/{framework}{ending}"
            jobs.append(Job((figure,), "original", settings, compile=seconds, run=5))
    return Worker(f"{variant} original", "original", tuple(jobs))


def _tests(*, dry_run: bool = False) -> Worker:
    job = Job(("pytest",), "pytest", {"seconds": 60 if dry_run else 240}, compile=30, run=0)
    return Worker("tests", "ours", (job,))


def _inference_shapes(*, dry_run: bool) -> Iterable[tuple[int, int, int]]:
    return ((32, 32, 1), (32, 64, 2)) if dry_run else INFERENCE


def _shape(h: int, w: int, batch: int) -> str:
    return f"{h}x{w}, batch {batch}"
