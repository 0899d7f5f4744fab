"""The file of results survives what a killed process leaves."""

from benchmarks.gpu import results


def test_a_line_that_was_cut_off_harms_neither_those_before_nor_those_after(tmp_path):
    file = tmp_path / "r.jsonl"
    results.append(file, "peaks", {"x": 1})
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"figure": "train/tiny/ours", "ms": 4')
    results.append(file, "goldens/tiny", {"x": 2})
    assert [line["figure"] for line in results.read(file)] == ["peaks", "goldens/tiny"]


def test_errors_and_dry_runs_are_not_known_figures_and_the_newest_counts(tmp_path):
    file = tmp_path / "r.jsonl"
    for figure, values in (
        ("a", {"x": 1}), ("a", {"x": 2}), ("a", {"error": "killed"}), ("b", {"error": "no memory"}),
        ("c", {"dry_run": True}),
    ):  # fmt: skip
        results.append(file, figure, values)
    lines = results.read(file)
    assert results.known(lines, dry_run=False) == {"a": {"figure": "a", "x": 2}}
    assert list(results.known(lines, dry_run=True)) == ["c"]
    assert results.read(tmp_path / "none") == []


def test_the_commit_can_be_named_where_there_is_no_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() == "unknown"
    monkeypatch.setenv("SEGRET_COMMIT", "abc1234")
    assert results.commit() == "abc1234"
