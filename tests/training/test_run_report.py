"""Training writes its report, at every evaluation and however it ends, and never fails for it."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from segret_jax.config import flatten
from segret_jax.report import page
from segret_jax.run.description import Recipe
from segret_jax.run.logger import RunLogger
from segret_jax.training import loop
from segret_jax.training.loop import train
from tests.training.test_resume import config_of


@pytest.fixture(autouse=True)
def _small(mini) -> None:
    """Of the variant `tiny`."""


def status(workdir: Path) -> str:
    text = (workdir / "report.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<span class="pill [a-z]*">(\w+)</span>', text)
    return found


def test_the_page_is_written_at_each_evaluation_and_at_the_end(tmp_path: Path, monkeypatch):
    seen = []
    original = page.write

    def write(folder: Path) -> Path:
        file = original(folder)
        seen.append(status(folder))
        return file

    monkeypatch.setattr(page, "write", write)
    config = config_of()
    recipe = Recipe("made_up", flatten(config))
    config.train.eval_every = 2
    assert train(config, tmp_path, recipe=recipe)
    assert seen == ["running", "running", "finished"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Settings that differ from the recipe made_up" in text
    assert text.count('<article class="picture"') == 1
    described = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert described["environment"]["devices"] == "2 x cpu"


@pytest.mark.slow
def test_a_run_that_is_stopped_or_fails_has_its_page(tmp_path: Path, monkeypatch):
    original = RunLogger.advance

    def stop(logger: RunLogger) -> None:
        original(logger)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "advance", stop)
        assert train(config_of(), tmp_path) is None
    assert status(tmp_path) == "stopped"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train", fail)
        with pytest.raises(RuntimeError):
            train(config_of(), tmp_path)
    assert status(tmp_path) == "failed"


@pytest.mark.slow
def test_a_disk_that_refuses_the_page_ends_no_training(tmp_path: Path, capsys):
    for name in ("report.html.partial", "run.json.partial"):
        (tmp_path / name).mkdir()
    assert train(config_of(), tmp_path)
    assert "no report: cannot write" in "".join(capsys.readouterr())
    assert (tmp_path / "status").read_text() == "finished\n"
