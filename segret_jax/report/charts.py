"""Charts as values for Plotly; "var(--NAME)" is a color of the stylesheet."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from segret_jax.pages.page import chart_text
from segret_jax.report.gather import RunRecord, sessions, values_of

Figure = dict[str, Any]  # data and layout of Plotly; in "narrow" what differs on phones

COLORS = ("var(--accent)", "#e07b39", "#2a9d6f", "#b45bcf", "#c9a227", "#d6455d")
MAX_POINTS = 1000  # of a curve
NAME_LENGTH = 22
BAR = 21  # pixels of a class
NUM_CONFUSIONS = 3  # in the hover of a class
FEW = 25  # classes whose matrix is read without zooming
NUMBERED = 14  # classes whose matrix has room for numbers
CURVES = (
    # key in metrics.jsonl, kind, title, factor, unit
    ("loss", "training", "Loss", 1, ""),
    ("mIoU", "validation", "Validation mIoU, %", 100, " %"),
    ("learning_rate", "training", "Learning rate", 1, ""),
    ("images_per_second", "training", "Throughput, images/s", 1, " images/s"),
    ("input_wait_share", "training", "Time waiting for input, %", 100, " %"),
)


def curves(runs: Sequence[RunRecord]) -> list[tuple[str, str, Figure]]:
    """Return (id, title, figure) of each curve for which a run has values."""
    found = []
    for key, kind, title, factor, unit in CURVES:
        traces = []
        for run, color in zip(runs, _colors(len(runs)), strict=True):
            steps, values = values_of(getattr(run, kind), key)
            if steps:
                x, y = binned(steps, values)
                traces.append(_trace(run, x, factor * y, color, unit, dots=kind == "validation"))
        if traces:
            layout = {
                "height": 260, "margin": {"l": 55, "r": 12, "t": 12, "b": 40},
                "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
                "yaxis": {
                    "rangemode": "normal" if key == "loss" else "tozero",
                    "exponentformat": "e", "nticks": 8,
                },
                "hovermode": "x unified", "showlegend": len(runs) > 1,
                "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
                "shapes": _restarts(runs[0]) if len(runs) == 1 else [],
            }  # fmt: skip
            found.append((key.lower(), title, {"data": traces, "layout": layout}))
    return found


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _trace(
    run: RunRecord, x: np.ndarray, y: np.ndarray, color: str, unit: str, *, dots: bool
) -> dict[str, Any]:
    """Return a line; dots show single values."""
    return {
        "type": "scatter", "name": chart_text(run.name), "x": x.tolist(),
        "y": [float(f"{value:.5g}") for value in y],  # shorter
        "mode": "lines+markers" if dots or len(x) < 3 else "lines",
        "line": {"color": color, "width": 2}, "marker": {"color": color, "size": 7},
        "hovertemplate": f"%{{y:.4~g}}{unit}<extra>{chart_text(_short(run.name))}</extra>",
    }  # fmt: skip


def _restarts(run: RunRecord) -> list[dict[str, Any]]:
    """Return a dotted line where the run was resumed."""
    line = {"color": "var(--soft)", "width": 1, "dash": "dot"}
    return [
        {"type": "line", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        for step, _ in sessions(run)[:-1]
    ]


def binned(steps: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `MAX_POINTS` points, the means of equal numbers of neighbors."""
    size = -(-len(steps) // MAX_POINTS)
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    x = np.maximum.reduceat(np.array(steps), starts)
    return x, np.add.reduceat(np.array(values, float), starts) / counts


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def short_names(names: Sequence[str]) -> list[str]:
    """Return names that fit beside a chart, all different, as Plotly reads them."""
    short = [_short(name) or f"class {i}" for i, name in enumerate(names)]
    unique = [f"{s} ({i})" if short.count(s) > 1 else s for i, s in enumerate(short)]
    return [chart_text(name) for name in unique]


def class_bars(runs: Sequence[RunRecord]) -> Figure:
    """Return bars of each class's IoU, the lowest of the first run first.

    All runs have the same classes; of several runs, each has its bar.
    """
    names = runs[0].class_names
    scores = [_scores(run, "IoU") for run in runs]
    order = np.argsort(np.where(np.isnan(scores[0]), np.inf, scores[0]), kind="stable")
    traces = []
    for run, iou, color in zip(runs, scores, _colors(len(runs)), strict=True):
        hover = hover_texts(run)
        traces.append({
            "type": "bar", "orientation": "h", "name": chart_text(run.name),
            "x": [None if np.isnan(iou[i]) else round(100 * iou[i], 2) for i in order],
            "y": list(range(len(order))), "marker": {"color": color},
            "text": ["absent" if np.isnan(iou[i]) else f"{100 * iou[i]:.1f}" for i in order],
            "textposition": "outside", "cliponaxis": False, "constraintext": "none",
            "customdata": [hover[i] for i in order],
            "hovertemplate": "%{customdata}<extra></extra>",
        })  # fmt: skip
    short = short_names(names)
    height = len(names) * (BAR + 14 * (len(runs) - 1)) + 70
    layout = {
        "height": height, "margin": {"l": 10, "r": 10, "t": 30, "b": 10}, "bargap": 0.25,
        "showlegend": len(runs) > 1, "hovermode": "closest",
        "legend": {"orientation": "h", "y": 0, "yanchor": "top"},
        "xaxis": {"range": [0, 108], "ticksuffix": " %", "side": "top", "fixedrange": True},
        "yaxis": {
            "range": [len(order) - 0.5, -0.5], "automargin": True, "ticks": "", "showgrid": False,
            "zeroline": False, "fixedrange": True,
            "tickmode": "array", "tickvals": list(range(len(order))),
            "ticktext": [short[i] for i in order],
        },
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _scores(run: RunRecord, key: str) -> np.ndarray:
    assert run.result is not None
    found = [scores.get(key) for scores in run.result.content["classes"].values()]
    return np.array([np.nan if value is None else value for value in found], float)


def hover_texts(run: RunRecord) -> list[str]:
    """Return what is told about each class: its scores and its most frequent confusions."""
    names, iou, acc = run.class_names, _scores(run, "IoU"), _scores(run, "Acc")
    texts = []
    for i, name in enumerate(names):
        short = chart_text(_short(name))
        lines = [
            f"<b>{short}</b>",
            f"IoU {_percent(iou[i])}, accuracy {_percent(acc[i])}",
        ]
        if run.counts is not None:
            lines += _confusions(f"labeled {short}, predicted as", run.counts[i], i, names)
            lines += _confusions(f"predicted as {short}, labeled", run.counts[:, i], i, names)
        texts.append("<br>".join(lines))
    return texts


def _confusions(title: str, pixels: np.ndarray, own: int, names: Sequence[str]) -> list[str]:
    others = np.where(np.arange(len(pixels)) == own, 0, pixels)
    order = np.argsort(-others, kind="stable")[:NUM_CONFUSIONS]
    lines = [
        f"  {chart_text(_short(names[j]))} {100 * others[j] / pixels.sum():.1f} %"
        for j in order
        if others[j] > 0
    ]
    return [f"{title}:", *lines] if lines else []


def _percent(value: float) -> str:
    return "—" if np.isnan(value) else f"{100 * value:.1f} %"


def most_confused_classes(counts: np.ndarray) -> list[int]:
    """Return the `FEW` classes with the most wrong pixels, in the order of their ids."""
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    return sorted(np.argsort(-wrong, kind="stable")[:FEW].tolist())


def confusion_matrix(counts: np.ndarray, names: Sequence[str], classes: Sequence[int]) -> Figure:
    """Return the rows and columns of `classes`; blue is right, red is wrong.

    The color goes with the square root of the share of the row, so that a few percent are visible.
    """
    total = counts.sum(1, keepdims=True)
    fractions = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    shown = fractions[np.ix_(classes, classes)]
    signed = np.where(np.eye(len(classes), dtype=bool), 1, -1) * np.sqrt(shown)
    percent, pixels = 100 * np.nan_to_num(shown), counts[np.ix_(classes, classes)]
    short = [short_names(names)[i] for i in classes]
    few, numbered = len(classes) <= FEW, len(classes) <= NUMBERED
    height = max(380, min(760, 26 * len(classes) + 140))
    trace = {
        "type": "heatmap", "x": short, "y": short, "zmin": -1, "zmax": 1, "showscale": False,
        "z": [[None if np.isnan(v) else round(float(v), 3) for v in row] for row in signed],
        "customdata": np.stack([percent.round(2), pixels], axis=-1).tolist(),
        "colorscale": [[0, "#d32f2f"], [0.5, "var(--card)"], [1, "#1f6feb"]],
        **({"text": _numbers(percent), "texttemplate": "%{text}"} if numbered else {}),
        "textfont": {"size": 11},
        "xgap": 1 if few else 0, "ygap": 1 if few else 0,
        "hovertemplate": "<b>%{y}</b> predicted as <b>%{x}</b><br>%{customdata[0]} % of its pixels"
        " (%{customdata[1]:,})<extra></extra>",
    }  # fmt: skip
    axis = {"automargin": True, "ticks": "", "showgrid": False, "tickfont": {"size": 11}}
    layout = {
        "height": height, "margin": {"l": 10, "r": 10, "t": 10, "b": 10}, "hovermode": "closest",
        "xaxis": {**axis, "autotickangles": [0, -60], "nticks": 200 if few else 60},
        "yaxis": {**axis, "autorange": "reversed", "nticks": 200 if few else 60},
    }  # fmt: skip
    return {"data": [trace], "layout": layout, "narrow": {"height": 420}}


def _numbers(percent: np.ndarray) -> list[list[str]]:
    """Return the numbers in the cells, rounded; none where that is 0."""
    return [[f"{value:.0f}" if value >= 0.5 else "" for value in row] for row in percent]
