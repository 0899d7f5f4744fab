"""A run from before models came in families: its settings had their keys in `model` itself.

format_2/run.tar.xz holds the third of six steps, written by commit 68e05db with the variant `SMALL`
on two CPU devices, with other settings than the defaults: rotary, ffn_conv, zero_branch, decay,
decoder_channels and max_scores. `LOSSES` are those of the steps that followed there.
"""

import json
import tarfile
from pathlib import Path

import pytest

from segret_jax import config as configs
from segret_jax.checkpoint import folders
from segret_jax.checkpoint import model as checkpoints
from segret_jax.models.segret import variants
from segret_jax.training.loop import train
from tests.checkpoint.test_old_checkpoints import SMALL, config_of
from tests.runs import records
from tests.settings import segret

LOSSES = [1.6554580926895142, 1.9170362949371338, 2.108397960662842]
SETTINGS = {
    "rotary": True, "ffn_conv": True, "zero_branch": False, "decoder_channels": 12,
    "decay": "post_softmax", "max_scores": 2**20,
}  # fmt: skip


@pytest.fixture
def run(mini, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(variants.VARIANTS, "tiny", SMALL)
    with tarfile.open(Path(__file__).parent / "format_2" / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_settings_of_older_configs_are_read(run):
    assert "family" not in json.loads((run / "config.json").read_text())["model"]
    assert configs.load(run / "config.json").model == segret(**SETTINGS)
    assert checkpoints.load_config(run / "checkpoints" / "3").model == segret(**SETTINGS)


@pytest.mark.slow
def test_older_run_resumes_with_the_same_losses(run):
    config = config_of()
    config.model = segret(**SETTINGS)
    checkpoints.load_model(folders.find(run), config)
    assert train(config, run) is not None
    losses = [r["loss"] for r in records(run) if r["kind"] == "train" and r["step"] > 3]
    assert losses == pytest.approx(LOSSES, rel=1e-5)
    assert json.loads((run / "config.json").read_text())["model"]["settings"]["rotary"]
    assert not list(run.glob("damaged*"))
