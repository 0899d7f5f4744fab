"""Whole runs of four steps: stopped and continued, refused, not finite."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from segret_jax.checkpoint.folders import saved_mean_iou
from segret_jax.checkpoint.model import load_model
from segret_jax.config import Config, DataConfig, EvalConfig, OptimConfig, TrainConfig, validate
from segret_jax.data.pipeline import class_table, open_source
from segret_jax.errors import InputError
from segret_jax.evaluation.evaluate import evaluate
from segret_jax.evaluation.inference import Predictor
from segret_jax.run.logger import RunLogger
from segret_jax.run.watchdog import Watchdog
from segret_jax.run.workdir import claim_workdir
from segret_jax.training import capture, loop
from segret_jax.training.evaluator import Evaluator
from segret_jax.training.loop import train
from segret_jax.training.step_log import StepLog
from tests.runs import leaves, records


@pytest.fixture(autouse=True)
def _small(mini) -> None:
    """Of the variant `tiny`."""


def config_of(**optim: Any) -> Config:
    return validate(
        Config(
            data=DataConfig(
                crop=(32, 32), synthetic_size=(32, 32), resize_base=(32, 32),
                synthetic_train=10, synthetic_validation=1,
            ),
            optim=OptimConfig(learning_rate=1e-3, warmup_steps=3, **optim),
            train=TrainConfig(
                steps=4, batch_size=4, log_every=1, eval_every=100,
                ema_decay=0.5,  # what is evaluated, and loaded by others
            ),
            eval=EvalConfig(resize_target=(32, 32), pictures=0),
        )
    )  # fmt: skip


@pytest.fixture
def when_step(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Call something after the given number of steps of this process."""

    def install(number: int, action: Callable[[], None]) -> None:
        original, calls = RunLogger.advance, []

        def advance(logger: RunLogger) -> None:
            original(logger)
            calls.append(1)
            if len(calls) == number:
                action()

        monkeypatch.setattr(RunLogger, "advance", advance)

    return install


@pytest.mark.slow
def test_a_finished_run_is_evaluated_again_and_not_trained(tmp_path, when_step):
    config = config_of()
    first = train(config, tmp_path)
    when_step(1, lambda: pytest.fail("a step was made"))
    again = train(config, tmp_path)
    assert again.metrics.mean_iou == first.metrics.mean_iou
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_a_stopped_run_continues_to_the_same_bits(tmp_path, when_step, capfd, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = config_of()
    result = train(config, whole)
    assert result.num_images == 1

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    when_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(config, parts) is None
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert "stopped at step 2, saved in" in "".join(capfd.readouterr())
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["2"]

    starts = []
    original = loop.batches_from
    monkeypatch.setattr(
        loop, "batches_from", lambda *args, **kw: starts.append(args[1]) or original(*args, **kw)
    )
    continued = train(config, parts)
    assert starts == [2]
    assert continued.metrics.mean_iou == result.metrics.mean_iou
    expected, actual = leaves(whole, 4), leaves(parts, 4)
    assert len(expected) > 400
    assert expected.keys() == actual.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(actual[name], leaf, err_msg=name, strict=True)

    steps, values = {}, ("loss", "accuracy", "learning_rate")
    for workdir in (whole, parts):
        lines = [r for r in records(workdir) if r["kind"] == "train"]
        steps[workdir] = {r["step"]: [r[v] for v in values] for r in lines}
    assert sorted(steps[whole]) == [1, 2, 3, 4]
    for step in (3, 4):
        assert steps[parts][step] == steps[whole][step]
    assert len({tuple(v) for v in steps[whole].values()}) == 4  # no batch came twice


def test_averaged_weights_are_what_is_evaluated_and_loaded(tmp_path):
    config = config_of()
    result = train(config, tmp_path)
    saved, kernel = leaves(tmp_path, 4), "['params']['decoder']['classify']['kernel']"
    assert 0 < np.abs(saved[f"model{kernel}"] - saved[f"training{kernel}"]).max() < 0.1
    source, table = open_source(config.data, "validation"), class_table(config.data)
    averaged = Predictor(load_model(tmp_path / "checkpoints/4", config), config.eval)
    assert evaluate(averaged, source, table).metrics.mean_iou == result.metrics.mean_iou


def test_the_folder_of_another_config_is_refused(tmp_path):
    with claim_workdir(tmp_path, config_of()):
        pass
    other = config_of(poly_power=1.0)
    with pytest.raises(InputError, match=r"optim\.poly_power \(0\.9 there, 1\.0 here\)") as error:
        train(other, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["optim"]["poly_power"] == 0.9  # the refused one left no trace


def test_what_does_not_change_the_result_may_differ(tmp_path):
    with claim_workdir(tmp_path, config_of()):
        pass
    other = config_of()
    other.train.eval_every, other.data.workers, other.model.settings.max_scores = 7, 3, 2**20
    with claim_workdir(tmp_path, other):
        pass


def test_a_folder_where_a_run_is_at_work_is_refused(tmp_path):
    with claim_workdir(tmp_path, config_of()):
        with pytest.raises(InputError, match=f"at work .process {os.getpid()} on ") as error:
            train(config_of(), tmp_path)
        assert str(tmp_path) in str(error.value)
        assert (tmp_path / "status").read_text() == "running\n"
    assert train(config_of(), tmp_path) is not None


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_is_made_up(tmp_path, when_step, monkeypatch):
    config = config_of()
    config.train.eval_every = 2
    original = Evaluator.score

    def interrupted(evaluator: Evaluator, *args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score", interrupted)
        assert train(config, tmp_path) is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert saved_mean_iou(tmp_path / "checkpoints" / "2") == -1
    assert train(config, tmp_path) is not None
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "validation"] == [2, 4]
    assert saved_mean_iou(tmp_path / "checkpoints" / "2") >= 0


def test_a_signal_before_the_first_step_stops_after_it(tmp_path, monkeypatch):
    original = loop.initialize

    def interrupted(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(loop, "initialize", interrupted)
    assert train(config_of(), tmp_path) is None
    assert (tmp_path / "status").read_text() == "stopped\n"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_the_steps_before_an_error_in_the_input_are_kept(tmp_path, monkeypatch):
    original = loop.batches_from

    def failing(*args: Any, **kwargs: Any) -> Iterator[dict[str, np.ndarray]]:
        stream = original(*args, **kwargs)
        yield from (next(stream) for _ in range(3))
        raise MemoryError

    monkeypatch.setattr(loop, "batches_from", failing)
    with pytest.raises(MemoryError):
        train(config_of(), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


@pytest.mark.slow
def test_skipped_traced_and_compiled_steps_are_reported(tmp_path, monkeypatch, capfd):
    """A step that is skipped is named, one is traced, all are timed and watched for compiling."""
    config, original, phases, checked = config_of(), loop.batches_from, [], []
    config.train.max_bad_steps, config.train.save_every = 1, 3

    def odd(*args: Any, **kwargs: Any) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(original(*args, **kwargs), start=1):
            if number == 2:
                batch["image"] = batch["image"] * np.float32("inf")
            yield batch

    def phase(watchdog: Watchdog, name: str, **options: bool) -> contextlib.AbstractContextManager:
        phases.append(name)
        return original_phase(watchdog, name, **options)

    original_phase = Watchdog.phase
    monkeypatch.setattr(Watchdog, "phase", phase)
    monkeypatch.setattr(StepLog, "report_compilation", lambda log, step, _: checked.append(step))
    monkeypatch.setattr(loop, "batches_from", odd)
    assert train(config, tmp_path, profile=range(3, 4)) is not None
    said = "".join(capfd.readouterr())
    assert "loss or gradient is not finite: skipped step 2\n" in said
    assert f"profile in {tmp_path / 'profile'}" in said
    assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))
    assert [r["skipped_steps"] for r in records(tmp_path) if r["kind"] == "train"] == [0, 1, 1, 1]
    assert phases[:3] == ["input", "compile", "wait for the device"]
    assert {"step", "save", "evaluation"} <= set(phases)
    assert checked == [1, 2, 3, 4]


def test_a_batch_not_divisible_by_the_devices_is_refused(tmp_path):
    config = config_of()
    config.train.batch_size = 3
    with pytest.raises(InputError, match=r"train\.batch_size is 3.*multiple of 2"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_with_state_and_batch(tmp_path, monkeypatch):
    original, fed = loop.batches_from, []

    def spoiled(*args: Any, **kwargs: Any) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(original(*args, **kwargs)):
            fed.append({key: value.copy() for key, value in batch.items()})
            if number == 2:
                batch["image"] = batch["image"] * np.float32("inf")
            yield batch

    monkeypatch.setattr(loop, "batches_from", spoiled)
    config = config_of()
    config.train.log_every = 4  # found one step later: the state must have waited
    with pytest.raises(InputError, match="step 3 is not finite") as error:
        train(config, tmp_path)
    assert len(str(error.value).splitlines()) == 1
    folder = tmp_path / "nonfinite_000003"
    assert f"segret replay {folder}" in str(error.value)
    assert (tmp_path / "status").read_text() == "failed\n"
    batch = capture.load(folder).batch
    for key in ("image", "label"):
        np.testing.assert_array_equal(batch[key], fed[2][key], err_msg=key)
    saved = leaves(tmp_path, 2)
    assert saved["training['step']"] == 2
    assert all(np.isfinite(leaf).all() for leaf in saved.values())

    monkeypatch.setattr(loop, "batches_from", original)
    assert train(config, tmp_path) is not None  # the same command goes on from there
    assert leaves(tmp_path, 4)["training['bad_step']"] == -1
