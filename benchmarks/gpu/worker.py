"""One process of a measurement: compile all programs, wait to be timed, time them in turn.

Its argument is a JSON object, see `main`. It prints "ready" and waits for a line on its standard
input; whatever else is printed goes to the standard error.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu import results
from segret_jax.errors import InputError

Figures = Iterator[tuple[str, dict[str, Any]]]
Measure = Callable[[], Figures]  # made by a job's function, which compiles


def main(argv: list[str]) -> None:
    """Run the jobs of {"module", "jobs", "results", "facts", "threads", …}.

    The module has `start(spec)`, which returns what each line of the results says, and `JOBS`.
    """
    _die_with_parent()
    spec = json.loads(argv[0])
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module = importlib.import_module(spec["module"])
    file = Path(spec["results"])
    try:
        facts = module.start(spec) | spec["facts"]
    except InputError as error:  # a second attempt would not help
        for figure in [f for job in spec["jobs"] for f in job["figures"]]:
            results.append(file, figure, {"error": str(error)} | spec["facts"])
        return

    with ThreadPoolExecutor(spec["threads"]) as pool:
        prepared = [(job, pool.submit(module.JOBS[job["kind"]], **job["settings"]))
                    for job in spec["jobs"]]  # fmt: skip
    print("ready", file=channel, flush=True)
    if not sys.stdin.readline():
        return
    while prepared:
        job, future = prepared.pop(0)  # what it holds on the device is freed after it was timed
        _record(file, job["figures"], future, facts)


def _record(
    file: Path, figures: list[str], prepared: "Future[Measure]", facts: dict[str, Any]
) -> None:
    """Append each figure as soon as it is known; those that fail as errors."""
    missing = list(figures)
    try:
        for figure, values in prepared.result()():
            name = next(f for f in figures if f.split("/")[0] == figure)
            results.append(file, name, values | facts)
            missing.remove(name)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        for name in missing:
            results.append(file, name, {"error": reason} | facts)


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent dies: a stopped process would stay forever."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
