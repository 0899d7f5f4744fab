"""Curves, bars and matrices: the numbers are those of the run, in the order that is promised."""

import numpy as np
import pytest

from segret_jax.report import charts
from segret_jax.report.gather import RunRecord, gather
from tests.report.made_up import HOSTILE, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return gather(write_run(folder, num_classes=13, names=(HOSTILE,), absent=2))


def test_curves_are_those_of_the_log(run: RunRecord):
    found = {id: figure for id, _, figure in charts.curves([run])}
    assert [*found] == ["loss", "miou", "learning_rate", "images_per_second", "input_wait_share"]
    (loss,) = found["loss"]["data"]
    assert loss["x"] == list(range(2, 41, 2))
    assert loss["y"][0] == pytest.approx(run.training[0]["loss"], rel=1e-4)
    (score,) = found["miou"]["data"]
    assert (score["x"], score["y"]) == ([20, 40], [45, 70])
    assert score["mode"] == "lines+markers"  # one evaluation would show no line
    (resumed,) = found["loss"]["layout"]["shapes"]
    assert resumed["x0"] == 20


def test_long_curves_become_means_of_neighbors():
    steps, values = np.arange(1, 5001), np.arange(5000.0)
    x, y = charts.binned(steps.tolist(), values.tolist())
    assert len(x) == 1000
    assert x[:2].tolist() == [5, 10]
    assert y[:2].tolist() == [2, 7]
    x, y = charts.binned([1, 2, 3], [4.0, 5.0, 6.0])
    assert (x.tolist(), y.tolist()) == ([1, 2, 3], [4, 5, 6])


def test_classes_are_sorted_and_absent_ones_last(run: RunRecord):
    figure = charts.class_bars([run])
    (bars,) = figure["data"]
    known = [x for x in bars["x"] if x is not None]
    assert known == sorted(known)
    assert bars["x"][-2:] == [None, None]
    assert bars["text"][-2:] == ["absent", "absent"]
    assert len(figure["layout"]["yaxis"]["ticktext"]) == 13


def test_hover_tells_the_most_frequent_confusions(run: RunRecord):
    assert run.counts is not None
    counts = run.counts.copy()
    counts[1] = 0
    counts[1, 1], counts[1, 4], counts[1, 2] = 60, 30, 10
    shown = charts.hover_texts(RunRecord(**{**vars(run), "counts": counts}))[1]
    lines = shown.split("<br>")
    at = lines.index("labeled class 1, predicted as:")
    assert lines[at + 1 : at + 3] == ["  class 4 30.0 %", "  class 2 10.0 %"]


def test_names_are_short_and_different_and_escaped():
    names = ["x" * 30, "x" * 29 + "y", "<b>sky</b>", ""]
    short = charts.short_names(names)
    assert len(set(short)) == 4
    assert max(map(len, short[:2])) <= 27
    assert short[2:] == ["&lt;b&gt;sky&lt;/b&gt;", "class 3"]


def test_matrix_shows_shares_of_rows_and_empty_rows_as_gaps():
    counts = np.array([[80, 20, 0], [0, 0, 0], [5, 5, 90]])
    figure = charts.confusion_matrix(counts, ["a", "b", "c"], [0, 1, 2])
    (trace,) = figure["data"]
    assert trace["z"][0] == [round(0.8**0.5, 3), -round(0.2**0.5, 3), 0]
    assert trace["z"][1] == [None] * 3
    assert trace["customdata"][2] == [[5, 5], [5, 5], [90, 90]]
    (part,) = charts.confusion_matrix(counts, ["a", "b", "c"], [0, 2])["data"]
    assert part["customdata"] == [[[80, 80], [0, 0]], [[5, 5], [90, 90]]]  # of the whole row


def test_the_classes_with_the_most_wrong_pixels_are_chosen():
    counts = 100 * np.eye(60, dtype=int)
    counts[3, 50] = counts[7, 8] = 5
    chosen = charts.most_confused_classes(counts)
    assert {3, 7, 8, 50} <= set(chosen)
    assert len(chosen) == charts.FEW
    assert chosen == sorted(chosen)
