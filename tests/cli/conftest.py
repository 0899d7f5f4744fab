"""`segret predict` with a stand-in for a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint.orbax_model import save_model
from segret_jax.cli import predict
from segret_jax.config import Config
from segret_jax.data.class_table import load_class_table
from segret_jax.evaluation import inference
from segret_jax.models.factory import ModelBundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint, of what `Reads` does not need."""
    folder = tmp_path_factory.mktemp("model") / "model"
    nothing = {"x": np.zeros(1)}
    bundle: Any = ModelBundle(None, nothing, nothing)
    save_model(folder, config=Config(), table=load_class_table("camvid"), bundle=bundle, source={})
    return folder


@pytest.fixture
def checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from tests.cli.test_predict import Reads

    monkeypatch.setattr(inference, "Predictor", Reads)
    monkeypatch.setattr(checkpoints, "load_model", lambda *_: ModelBundle(None, {}, {}))
    return folder


@pytest.fixture
def run(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs predict.py and gives (status, stdout, stderr)."""

    def run(path: Path | str, out: Path, *options: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = 0
        where = ["--checkpoint", str(checkpoint), "--out", str(out)]
        try:
            predict.main([str(path), *map(str, options), *where])
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
