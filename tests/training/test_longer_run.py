"""A run with more steps than it had, or with other settings: allowed, or told what to do."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from segret_jax.config import Config, load
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.models.kernels import ANY_PLATFORM
from segret_jax.run.workdir import claim_workdir
from segret_jax.training import loop
from segret_jax.training.evaluator import Evaluator
from segret_jax.training.initialization import initialize
from segret_jax.training.optimizer import learning_rate_schedule
from tests.runs import records
from tests.training.test_resume import config_of


@pytest.fixture(autouse=True)
def _small(mini) -> None:
    """Of the variant `tiny`."""


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a step that counts alone, and an evaluation that is cut off: nothing to compile."""

    def make_train_step(*args: Any) -> Any:
        def step(state: Any, batch: Any) -> Any:
            metrics = ("loss", "accuracy", "gradient_norm", "update_norm")
            state = dataclasses.replace(state, step=state.step + 1)
            return state, dict.fromkeys(metrics, jnp.zeros(()))

        return jax.jit(step)

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    monkeypatch.setattr(Evaluator, "score", lambda *args, **kwargs: None)


def of(steps: int, **optim: Any) -> Config:
    config = config_of(**optim)
    config.train.steps = steps
    return config


@pytest.mark.slow
def test_a_run_continues_with_more_steps_and_names_its_schedule(tmp_path, counting, capfd):
    for steps in (2, 4):
        loop.train(of(steps), tmp_path)
    checkpoints = tmp_path / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4"]
    assert load(tmp_path / "config.json").train.steps == 4
    assert load(checkpoints / "2" / "config" / "metadata").train.steps == 2
    now = learning_rate_schedule(of(4).optim, 4)
    said = "".join(capfd.readouterr())
    assert said.count("train.steps is") == 1
    assert "train.steps is 4, was 2: from step 3 on the learning rate follows" in said
    assert f"(0.00e+00 -> {now(2):.2e} at that step)" in said
    rates = [r["learning_rate"] for r in records(tmp_path) if r["kind"] == "train"]
    assert rates[2:] == pytest.approx([float(now(2)), float(now(3))], rel=1e-5)


@pytest.fixture
def three_of_six(tmp_path: Path) -> Path:
    """The folder of a run that was stopped."""
    with claim_workdir(tmp_path, of(6)) as mark:
        (tmp_path / "checkpoints" / "3").mkdir(parents=True)
        mark("stopped")
    return tmp_path


def refused(workdir: Path, config: Config) -> str:
    before = (workdir / "config.json").read_text()
    with pytest.raises(InputError) as error, claim_workdir(workdir, config):
        pass
    assert (workdir / "config.json").read_text() == before
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "delete" not in message
    return message


@pytest.mark.parametrize("steps", [2, 5])
def test_fewer_steps_are_refused_with_those_made(three_of_six, steps):
    message = refused(three_of_six, of(steps))
    assert f"6 steps, 3 of them made, but train.steps is {steps}" in message
    assert "Give --config.train.steps=6 or more, or another --workdir" in message


def more_decay(config: Config) -> None:
    config.optim.weight_decay = 0.3


def another_batch(config: Config) -> None:
    config.train.batch_size = 8


@pytest.mark.parametrize("change", [more_decay, another_batch])
@pytest.mark.parametrize("steps", [6, 9])
def test_other_settings_are_refused_with_the_way_to_keep_the_weights(
    three_of_six, change: Callable, steps
):
    config = of(steps)
    change(config)
    message = refused(three_of_six, config)
    assert ("train.steps (6 there, 9 here)" in message) == (steps == 9)
    assert f"Choose another --workdir; --config.init_from={three_of_six} starts there" in message


def test_a_run_that_saved_nothing_has_no_weights_to_start_from(tmp_path):
    with claim_workdir(tmp_path, of(6)):
        pass
    assert "init_from" not in refused(tmp_path, of(6, poly_power=1.0))


def test_unchanged_steps_give_no_note(three_of_six):
    table = class_table(of(6).data)
    assert initialize(of(6), table, three_of_six, platform=ANY_PLATFORM).notes == ()
    saved = json.loads((three_of_six / "config.json").read_text())
    assert saved["train"]["steps"] == 6
    assert (
        "was 6: from step 4 on"
        in initialize(of(7), table, three_of_six, platform=ANY_PLATFORM).notes[0]
    )
