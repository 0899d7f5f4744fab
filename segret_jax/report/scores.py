"""The headline numbers, settings and protocol of a run, in words."""

import statistics
from typing import Any

from segret_jax.config import Config
from segret_jax.report.gather import RunRecord, sessions, values_of
from segret_jax.settings import flatten

HASH = 64  # characters of a SHA-256
SCORES = (
    ("mAcc", "mean accuracy of the classes"),
    ("aAcc", "of all labeled pixels"),
    ("fwIoU", "IoU weighted by pixels"),
    ("mBoundaryIoU", "IoU of boundaries"),
)
Tile = dict[str, str]  # name, value, detail


def tiles(run: RunRecord) -> list[Tile]:
    """Return the headline numbers: scores with their interval, speed, time and memory."""
    found = [*_scores(run), *_training(run)]
    return [{"name": name, "value": value, "detail": detail} for name, value, detail in found]


def _scores(run: RunRecord) -> list[tuple[str, str, str]]:
    found = []
    if run.result:
        content = run.result.content
        found.append(("mIoU", percent(content.get("mIoU")), _interval(content)))
        for key, text in SCORES:
            if content.get(key) is not None:
                name = "boundary IoU" if key == "mBoundaryIoU" else key
                found.append((name, percent(content[key]), text))
    steps, values = values_of(run.validation, "mIoU")
    if len(values) > 1:
        best = max(range(len(values)), key=values.__getitem__)
        found.append(("best mIoU", percent(values[best]), f"at step {steps[best]:,}"))
    return found


def _interval(content: dict[str, Any]) -> str:
    low, high = content.get("mIoU_interval") or (None, None)
    images = f"{content.get('num_images', 0):,} images"
    if low is None or high is None:
        return images
    return f"95% interval {100 * low:.2f} to {100 * high:.2f}, {images}"


def _training(run: RunRecord) -> list[tuple[str, str, str]]:
    found = []
    steps, losses = values_of(run.training, "loss")
    if steps:
        planned = run.config.get("train.steps")
        of = f"of {planned:,} steps" if planned else "steps"
        found.append(("step", f"{steps[-1]:,}", of))
        found.append(("loss", f"{losses[-1]:.3f}", f"at step {steps[-1]:,}"))
    speeds = values_of(run.training, "images_per_second")[1]
    waits = values_of(run.training, "input_wait_share")[1]
    if speeds:
        waiting = f", {statistics.median(waits):.0%} waiting for input" if waits else ""
        found.append(("throughput", f"{statistics.median(speeds):.3g}", f"images/s{waiting}"))
    if runs := sessions(run):
        resumed = f"resumed {len(runs) - 1} times" if len(runs) > 1 else "evaluations included"
        resumed = "resumed once" if len(runs) == 2 else resumed
        found.append(("time", duration(sum(seconds for _, seconds in runs)), resumed))
    if memory := values_of(run.training, "peak_memory_gb")[1]:
        found.append(("peak memory", f"{max(memory):.2f} GB", "per device; on CPU, of the process"))
    return found


def percent(value: float | None) -> str:
    """Return a score from 0 to 1 in percent, or a dash for none."""
    return "—" if value is None else f"{value:.2%}"


def duration(seconds: float) -> str:
    """Return a time such as "2 h 05 min", "3 min 20 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def changed_settings(run: RunRecord) -> tuple[str, list[tuple[str, str, str]]]:
    """Return what the run is compared with, and (key, value there, value here) that differ.

    That is the recipe as its file gives it, or the defaults for a run started from Python.
    """
    recipe = run.description.get("recipe")
    there = run.description.get("recipe_settings") if recipe else flatten(Config())
    if not isinstance(there, dict) or not run.config:
        return "", []
    changed = [
        (key, plain(there.get(key, "—")), plain(value))
        for key, value in run.config.items()
        if plain(there.get(key, "—")) != plain(value)
    ]
    return f"the recipe {recipe}" if recipe else "the defaults", changed


def differing_settings(runs: list[RunRecord]) -> list[list[str]]:
    """Return rows of a key and each run's value, of the settings that are not equal in all."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = [[key, *(plain(run.config.get(key, "—")) for run in runs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def plain(value: Any) -> str:
    """Return a setting as text: hashes are cut, lists written as tuples."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(plain, value)) + ")"
    return value[:12] if isinstance(value, str) and len(value) == HASH else str(value)


def rows(values: Any) -> list[tuple[str, str]]:
    """Return the rows of a table of keys and values; none for anything but a dict."""
    if not isinstance(values, dict):
        return []
    return [(key, plain(value)) for key, value in values.items()]
