"""The command that measures a GPU: what it runs, continues, skips and reports."""

import json
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import plan, results
from segret_jax.errors import InputError


def worker(name: str, *kinds: str, run: float = 0.0, **settings: object) -> plan.Worker:
    jobs = (
        plan.Job((f"value/{name}{i}", f"more/{name}{i}"), kind, dict(settings), run=run)
        for i, kind in enumerate(kinds)
    )
    return plan.Worker(name, "ours", tuple(jobs))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that measures with workers of fake jobs; it gives status and output."""
    monkeypatch.setattr(plan, "START", 0.0)
    monkeypatch.setitem(command.MODULES, "ours", "tests.benchmarks.fake_jobs")

    def measure(*workers: plan.Worker, seconds: float = 60) -> tuple[int, str]:
        monkeypatch.setattr(plan, "workers", lambda **_: list(workers))
        with pytest.raises(SystemExit) as ended:
            command.main(["--out", str(tmp_path), "--seconds", str(seconds)])
        return int(ended.value.code or 0), capsys.readouterr().out

    return measure


def figures(folder) -> dict[str, dict]:
    return results.known(results.read(folder / command.FILE), dry_run=False)


def test_a_run_continues_with_what_is_missing(run, tmp_path):
    status, _ = run(worker("a", "value", x=1))
    assert status == 0
    first = figures(tmp_path)
    assert {f: line["x"] for f, line in first.items()} == {"value/a0": 1, "more/a0": 2}
    assert first["value/a0"]["device"] == "fake"
    status, said = run(worker("a", "value", x=5), worker("b", "value", x=7))
    assert figures(tmp_path)["value/a0"]["x"] == 1  # not measured again
    assert figures(tmp_path)["more/b0"]["x"] == 8
    assert "started: a" not in said


def test_neither_an_error_nor_a_killed_process_harms_the_others(run, tmp_path):
    bad = worker("bad", "fails", "half")
    status, said = run(bad, worker("dead", "dies"), worker("good", "value", x=1))
    assert status == 1
    found = figures(tmp_path)
    assert found.keys() == {"value/bad1", "value/good0", "more/good0"}
    assert "failed: value/bad0 (RuntimeError: out of memory)" in said
    assert "failed: more/bad1 (RuntimeError: no trace)" in said
    assert "skipped: value/dead0 (its process ended with status -9, twice)" in said
    assert "run the same command again" not in said  # that would help nothing


def test_what_was_wrong_is_looked_at_again(run, tmp_path):
    results.append(tmp_path / command.FILE, "value/a0", {"ok": False})
    results.append(tmp_path / command.FILE, "more/a0", {"ok": True})
    status, said = run(worker("a", "value", run=99))
    assert (status, "failed: value/a0 (wrong)" in said) == (1, True)  # as long as it is
    assert run(worker("a", "value", x=3))[0] == 0
    assert figures(tmp_path)["value/a0"]["x"] == 3


def test_a_machine_without_a_gpu_is_named_once_per_figure_and_not_tried_again(run, monkeypatch):
    monkeypatch.setenv("FAKE_NO_GPU", "1")
    status, said = run(worker("a", "value", x=1))
    assert status == 1
    assert "failed: value/a0 (JAX sees no NVIDIA GPU here)" in said
    assert said.count("started: a") == 1


def test_a_table_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="there are no results; give results"):
        command.main(["--table", str(tmp_path / "none.jsonl")])


def test_what_does_not_fit_is_named(run, tmp_path):
    status, said = run(worker("quick", "value", x=1), worker("big", "value", run=99))
    assert status == 0
    assert figures(tmp_path).keys() == {"value/quick0", "more/quick0"}
    assert "started: big" not in said
    for name in ("value/big0", "more/big0"):
        assert f"skipped: {name} (no time left)" in said
    assert "run the same command again" in said


def test_a_worker_keeps_its_first_jobs_that_fit():
    whole = worker("w", "value", "value", "value", run=10.0)
    assert whole.seconds == plan.START + 30
    assert whole.within(plan.START + 25).jobs == whole.jobs[:2]
    assert whole.within(plan.START).jobs == ()


def test_only_chooses_by_the_first_parts_of_a_figure():
    chosen = plan.select(plan.workers(), ["train/segret_tiny", "peaks"])
    names = [figure for w in chosen for job in w.jobs for figure in job.figures]
    assert names == ["peaks", "train/segret_tiny/ours", "parts/segret_tiny",
                     "train/segret_tiny/original", "train/segret_tiny/torch.compile"]  # fmt: skip
    with pytest.raises(InputError, match="--only trian is no figure; they begin with"):
        plan.select(plan.workers(), ["trian"])


def test_the_plan_has_every_job_of_every_variant_once_and_a_dry_run_each_kind():
    def kinds(workers: list[plan.Worker]) -> set[tuple[str, str]]:
        return {(w.framework, job.kind) for w in workers for job in w.jobs}

    names = [f for w in plan.workers() for job in w.jobs for f in job.figures]
    assert len(names) == len(set(names))
    of_ours = ("train/{}/ours", "parts/{}", "goldens/{}", "inference/{}/ours/1024x2048, batch 1")
    of_originals = ("train/{}/original", "train/{}/torch.compile")
    for variant in ("tiny", "small", "base", "large"):
        for model in (f"segret_{variant}", f"segman_{variant}"):
            assert {figure.format(model) for figure in of_ours} <= set(names)
        assert {figure.format(f"segret_{variant}") for figure in of_originals} <= set(names)
    assert not any(name.startswith("train/segman_tiny/original") for name in names)
    assert kinds(plan.workers(dry_run=True)) == kinds(plan.workers())


def test_the_plan_begins_with_what_was_never_measured():
    names = [worker.name for worker in plan.workers()]
    assert names[:8] == [
        "peaks", "neighborhood", "scan", "tests", "segman_tiny ours", "retention",
        "segret_tiny ours", "segret_tiny original",
    ]  # fmt: skip
    figures = [f for w in plan.workers() if w.name == "scan" for job in w.jobs for f in job.figures]
    assert figures[0] == "kernels/scan/segman_tiny stage 1, 512x512, batch 16, bfloat16"
    assert sum("segman_tiny" in figure for figure in figures) == 2 * 3


def test_every_file_of_gpu_tests_is_planned():
    files = Path(plan.__file__).parents[2].glob("tests/gpu/test_*.py")
    assert {file.stem for file in files} == set(plan.TESTS)


def test_jobs_of_the_original_are_skipped_with_a_reason(tmp_path, monkeypatch):
    assert command._impossible(None) == {"original": "--original is not given"}
    with pytest.raises(InputError, match="has no folder mmseg"):
        command._impossible(tmp_path)
    (tmp_path / "mmseg").mkdir()
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command._impossible(tmp_path) == {"original": "PyTorch is not installed"}


def test_the_original_is_measured_where_there_is_pytorch(monkeypatch):
    torch = mock.MagicMock(__version__="2.11.0")
    torch.cuda.is_available.return_value = True
    torch.cuda.get_device_name.return_value = "H100"
    # Before and after this job is made; when it is timed, with 1 GB of other jobs.
    torch.cuda.memory_allocated.side_effect = [10**9, 3 * 10**9, 3 * 10**9]
    torch.cuda.max_memory_allocated.return_value = 5 * 10**9
    for name in ("torch", "torch.nn"):
        monkeypatch.setitem(sys.modules, name, torch)
    for name in ("benchmarks.gpu.original", "benchmarks.peers.original"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from benchmarks.gpu import original

    monkeypatch.setattr(original, "make", lambda *args, **settings: lambda: time.sleep(0.01))
    facts = original.start({"original": "folder"})
    job = next(j for w in plan.workers() if w.name == "segret_tiny original" for j in w.jobs)
    settings = job.settings | {"repeats": 2}
    ((figure, found),) = original.JOBS[job.kind](**settings)()
    assert facts["device"] == "H100"
    assert figure == "train"
    assert found["memory_gb"] == 4.0
    assert 10 <= found["ms"] < 100
    assert json.dumps(found | facts)
    for name in ("benchmarks.gpu.original", "benchmarks.peers.original"):
        sys.modules.pop(name, None)  # they hold the stand-in
