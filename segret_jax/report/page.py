"""The page of a run, and the page of several runs side by side."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segret_jax.checkpoint.folders import FOLDER as CHECKPOINTS
from segret_jax.evaluation import compare, confusion
from segret_jax.evaluation.results import REPORT
from segret_jax.pages import page
from segret_jax.report import charts, scores
from segret_jax.report.gather import RunRecord, gather
from segret_jax.report.pictures import Picture, common, gallery


def write(folder: Path) -> Path:
    """Write the page of a run, or of a result, into its folder; return its path.

    Raises:
        InputError: The folder holds neither, or the disk refuses.
    """
    page.write(folder / REPORT, run_page(gather(folder)))
    return folder / REPORT


def try_write(folder: Path, log: Callable[[str], None]) -> None:
    """Write the page; a fault is a line in `log`, for no page is worth a training."""
    try:
        write(folder)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        logging.debug("no report", exc_info=True)
        with contextlib.suppress(Exception):
            log(f"no report: {reason}; segret report {folder} writes it later")


def run_page(run: RunRecord) -> str:
    """Return the page of a run."""
    compared, changed = scores.changed_settings(run)
    protocol = run.result.protocol if run.result else {}
    matrices, pairs = _confusions(run)
    pictures = gallery(run)
    return page.render(
        "run.html",
        title=f"{run.name}: report",
        run=run,
        subtitle=_subtitle(run),
        notes=[*run.notes, *_incomplete(run)],
        tiles=scores.tiles(run),
        curves=charts.curves([run]),
        bars=charts.class_bars([run]) if run.class_names else None,
        matrices=matrices,
        pairs=pairs,
        pictures=pictures,
        pictured=_pictured(run, pictures),
        compared=compared,
        changed=changed,
        settings=scores.rows(run.config),
        environment=scores.rows(run.description.get("environment")),
        command=run.description.get("command", ""),
        started=run.description.get("started", ""),
        protocol=protocol.get("id", ""),
        must_agree=scores.rows(protocol.get("must_agree")),
        may_differ=scores.rows(protocol.get("may_differ")),
    )


def _pictured(run: RunRecord, pictures: list[Picture]) -> list[tuple[int, str]]:
    """Return (id, name) of the classes in the labels of the pictures, sorted by name."""
    found = {key for one in pictures for key in one.scores}
    classes = [(i, name) for i, name in enumerate(run.class_names) if str(i) in found]
    return sorted(classes, key=lambda one: one[1])


def _subtitle(run: RunRecord) -> str:
    """Return the model, the dataset and the checkpoint in a line."""
    protocol = run.result.protocol if run.result else {}
    settings = run.config or dict(scores.rows(protocol.get("may_differ")))
    scored = dict(scores.rows(protocol.get("must_agree")))
    dataset = settings.get("data.dataset") or scored.get("dataset")
    parts = []
    if "model.family" in settings and dataset:
        model = f"{settings['model.family']}_{settings['model.variant']}"
        parts.append(f"{model} on {Path(dataset).stem}")
    return "; ".join([*parts, _checkpoint(run)])


def _checkpoint(run: RunRecord) -> str:
    """Return what was scored: the step of a run's checkpoint, or the name of other weights."""
    if run.result is None:
        return "no evaluation yet"
    path = Path(str(run.result.content.get("checkpoint")))
    is_step = path.parent.name == CHECKPOINTS and path.name.isdigit()
    return f"scores at step {int(path.name):,}" if is_step else f"scores of {path.name}"


def _incomplete(run: RunRecord) -> list[str]:
    faults = run.result.content.get("faults", []) if run.result else []
    first = f", such as {faults[0]}" if faults else ""
    return [f"The scores are incomplete: {len(faults)} images were left out{first}"] * bool(faults)


def _confusions(
    run: RunRecord,
) -> tuple[list[tuple[str, charts.Figure]], list[tuple[str, str, str, str]]]:
    """Return (title, figure) of each view of the confusion matrix, and its largest errors."""
    if run.counts is None or not run.counts.any():
        return [], []
    names, counts = run.class_names, run.counts
    views = [(f"all {len(names)} classes", [*range(len(names))])]
    if len(names) > charts.FEW:
        few = charts.most_confused_classes(counts)
        views.insert(0, (f"the {len(few)} classes with the most wrong pixels", few))
    pairs = [
        (names[i], names[j], f"{100 * share:.1f}", f"{100 * of_all:.2f}")
        for i, j, share, of_all in confusion.confused_pairs(counts)
    ]
    return [(title, charts.confusion_matrix(counts, names, ids)) for title, ids in views], pairs


def side_by_side(runs: list[RunRecord]) -> str:
    """Return the page of several runs; the first is compared with each of the others."""
    _name_apart(runs)
    with_classes = [run for run in runs if run.class_names]
    same = [run for run in with_classes if run.class_names == with_classes[0].class_names]
    numbers = [{tile["name"]: tile for tile in scores.tiles(run)} for run in runs]
    names = list(dict.fromkeys(name for one in numbers for name in one))
    return page.render(
        "side_by_side.html",
        title=f"{len(runs)} runs side by side",
        runs=runs,
        subtitles=[_subtitle(run) for run in runs],
        notes=[note for run in runs for note in [*run.notes, *_incomplete(run)]],
        numbers=[(name, [one.get(name) for one in numbers]) for name in names],
        verdicts=[_verdict(runs[0], other) for other in runs[1:]],
        curves=charts.curves(runs),
        bars=charts.class_bars(same) if same else None,
        names=[run.name for run in same],
        pictures=common(same) if len(same) > 1 else [],
        settings=scores.differing_settings(runs),
    )


def _name_apart(runs: list[RunRecord]) -> None:
    """Give runs of one name their paths as names."""
    names = [run.name for run in runs]
    for run, name in zip(runs, names, strict=True):
        if names.count(name) > 1:
            run.name = str(run.folder)


def _verdict(a: RunRecord, b: RunRecord) -> dict[str, Any]:
    """Return what `segret compare` says of two runs."""
    found: dict[str, Any] = {"a": a.name, "b": b.name, "reasons": [], "text": ""}
    found |= {"allowed": [], "incomplete": []}
    if a.result is None or b.result is None:
        missing = [run.name for run in (a, b) if run.result is None]
        return found | {"reasons": [f"{name} has no scores that can be read" for name in missing]}
    reasons = compare.differences(a.result, b.result)
    found |= {"reasons": reasons, "allowed": compare.allowed(a.result, b.result)}
    if not reasons:
        found["text"] = compare.difference(a.result, b.result)
    return found | {"incomplete": compare.left_out(a.result, b.result)}
