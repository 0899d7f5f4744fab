"""What is measured, in order of value, and how long each job takes at the least."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from segret_jax.errors import InputError

START = 10.0  # seconds, for imports and the device
VARIANTS = ("tiny", "base", "small", "large")  # in order of value
# At the least, on an H100 beside others: compilation of a train step, by XLA (SegMAN's takes
# longer) and by torch.compile.
COMPILE_TRAIN = {"tiny": 45.0, "base": 110.0, "small": 70.0, "large": 120.0}
COMPILE_TORCH = {"tiny": 40.0, "base": 80.0, "small": 60.0, "large": 80.0}
COMPILE_FORWARD = 20.0
TOY = {"segret": (32, 32), "segman": (224, 224)}  # sizes of a dry run, the least for SegMAN
INFERENCE = ((512, 512, 1), (512, 512, 32), (1024, 2048, 1))  # height, width, batch
# Variant, stage from 0, side of the images, how many, dtype: in float32 small ones, for rounding.
ATTENTION = (
    *(("tiny", stage, 512, 16, "bfloat16") for stage in range(4)), ("base", 0, 512, 16, "bfloat16"),
    *(("tiny", stage, 224, 2, "float32") for stage in range(4)),
)  # fmt: skip
SCAN = tuple(case for case in ATTENTION if case[1] < 3)  # the last stage has none
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
TESTS = ("test_neighborhood", "test_selective_scan", "test_device")  # of tests/gpu


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
        small = (("toy", 2, 224, 2, "float32"),)
        jobs = (*_operation("neighborhood", small), *_operation("scan", small))
        kernels = Worker("kernels", "ours", (*jobs, *_retention(TINY_RETENTION, batch=2)))
        toys = [_ours("segman_toy"), _ours("segret_toy"), _original("toy")]
        return [_peaks(size=256), kernels, *toys, _tests(dry_run=True)]
    models = [
        worker
        for variant in VARIANTS
        for worker in (_ours(f"segman_{variant}"), _ours(f"segret_{variant}"), _original(variant))
    ]
    return [
        _peaks(size=0),
        Worker("neighborhood", "ours", _operation("neighborhood", ATTENTION)),
        Worker("scan", "ours", _operation("scan", SCAN)),
        _tests(),
        models[0],
        Worker("retention", "ours", _retention(RETENTION, batch=16)),
        *models[1:],
    ]


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


def _operation(name: str, cases: Iterable[tuple[str, int, int, int, str]]) -> tuple[Job, ...]:
    """Return the jobs of one of SegMAN's operations."""
    jobs = []
    for variant, stage, side, batch, dtype in cases:
        shape = f"segman_{variant} stage {stage + 1}, {_shape(side, side, batch)}"
        settings = {"variant": variant, "stage": stage, "size": (side, side), "batch": batch}
        jobs.append(_kernels(name, shape, settings, dtype))
    return tuple(jobs)


def _retention(
    cases: Iterable[tuple[tuple[str, int, int, int, int], str]], *, batch: int
) -> tuple[Job, ...]:
    jobs = []
    for (form, h, w, heads, width), dtype in cases:
        shape = f"{form} {h}x{w}, {heads} heads of {width}"
        settings = {"form": form, "size": (h, w), "heads": heads, "width": width, "batch": batch}
        jobs.append(_kernels("retention", shape, settings, dtype))
    return tuple(jobs)


def _kernels(operation: str, shape: str, settings: dict[str, Any], dtype: str) -> Job:
    settings = {"operation": operation, **settings, "dtype": dtype, "repeats": 20}
    figure = f"kernels/{operation}/{shape}, {dtype}"
    return Job((figure,), "kernels", settings, compile=10, run=1)


def _ours(model: str) -> Worker:
    family, variant = model.split("_")
    dry_run = variant == "toy"
    size, batch = (TOY[family], 2) if dry_run else ((512, 512), 16)
    # On CPU bfloat16 takes twice as long to compile.
    dtype, repeats = ("float32", 2) if dry_run else ("bfloat16", 20)
    train = Job(
        (f"train/{model}/ours", f"parts/{model}"),
        "train",
        {"model": model, "size": size, "batch": batch, "dtype": dtype, "repeats": repeats},
        compile=COMPILE_TRAIN.get(variant, 0),
        run=10,
    )
    golden = f"{family}_tiny" if dry_run else model
    goldens = Job(
        (f"goldens/{golden}",), "goldens", {"model": golden}, compile=COMPILE_FORWARD, run=2
    )
    inference = tuple(
        Job(
            (f"inference/{model}/ours/{_shape(h, w, b)}",),
            "inference",
            {"model": model, "size": (h, w), "batch": b, "dtype": dtype, "repeats": repeats},
            compile=COMPILE_FORWARD,
        )
        for h, w, b in (_toy_shapes(*size) if dry_run else INFERENCE)
    )
    return Worker(f"{model} ours", "ours", (train, goldens, *inference))


def _original(variant: str) -> Worker:
    """Return the worker of SegRet's original; SegMAN's needs CUDA extensions."""
    dry_run = variant == "toy"
    name, model = "tiny" if dry_run else variant, f"segret_{variant}"
    size, batch = ((64, 64), 2) if dry_run else ((512, 512), 16)
    jobs = []
    for mode, compiled in (("train", False), ("train", True), ("inference", False),
                           ("inference", True)):  # fmt: skip
        framework = "torch.compile" if compiled else "original"
        shapes = _toy_shapes(32, 32) if dry_run else INFERENCE
        for h, w, b in [(*size, batch)] if mode == "train" else shapes:
            ending = "" if mode == "train" else f"/{_shape(h, w, b)}"
            settings = {
                "variant": name, "mode": mode, "size": (h, w), "batch": b, "dtype": "bfloat16",
                "compiled": compiled, "repeats": 2 if dry_run else 20,
            }  # fmt: skip
            seconds = COMPILE_TORCH.get(variant, 0) if compiled else 3
            figure = f"{mode}/{model}/{framework}{ending}"
            jobs.append(Job((figure,), "original", settings, compile=seconds, run=5))
    return Worker(f"{model} original", "original", tuple(jobs))


def _tests(*, dry_run: bool = False) -> Worker:
    """Return a worker of the tests that need a GPU; each file is a process."""
    paths = {"all": "tests/gpu"} if dry_run else {name: f"tests/gpu/{name}.py" for name in TESTS}
    seconds = 60 if dry_run else 240
    jobs = (
        Job((f"pytest/{name}",), "pytest", {"path": path, "seconds": seconds}, compile=30, run=0)
        for name, path in paths.items()
    )
    return Worker("tests", "ours", tuple(jobs))


def _toy_shapes(h: int, w: int) -> tuple[tuple[int, int, int], ...]:
    return (h, w, 1), (h, w + 32, 2)


def _shape(h: int, w: int, batch: int) -> str:
    return f"{h}x{w}, batch {batch}"
