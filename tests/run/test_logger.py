"""What is written, by whom, and what a kill leaves; W&B as a module of the test's own."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import psutil
import pytest

from segret_jax import files
from segret_jax.errors import InputError
from segret_jax.run import logger as loggers
from segret_jax.run import memory
from segret_jax.run.logger import RunLogger

VALUES = {"loss": 0.5, "accuracy": 80.0, "learning_rate": 1e-3, "skipped_samples": 0}


class Wandb:
    """Records every call; the functions in `broken` raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.broken: set[str] = set()

    def called(self, name: str) -> list[Any]:
        return [arguments for called, arguments in self.calls if called == name]

    def call(self, name: str, arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name in self.broken:
            raise RuntimeError(f"{name}:\nno network")

    def init(self, **settings: Any) -> Any:
        self.call("init", settings)
        return SimpleNamespace(
            log=lambda values, *, step: self.call("log", (step, values)),
            finish=lambda *, exit_code: self.call("finish", exit_code),
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake, module = Wandb(), ModuleType("wandb")
    module.init, module.Image = fake.init, lambda file: ("image", file)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return fake


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the logger sees."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(loggers.time, "perf_counter", lambda: clock.seconds)
    return clock


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_speed_and_the_share_of_waiting_are_since_the_last_record(tmp_path, now):
    with RunLogger(tmp_path, steps=10, start=2, images_per_step=16) as logger:
        now.seconds += 4.0
        logger.add_input_wait(0.5)
        logger.add_input_wait(0.5)
        logger.record_training(4, VALUES)
        now.seconds += 1.0
        logger.record_training(5, VALUES)
        logger.add_input_wait(0.25)
        now.seconds += 50.0
        logger.record_evaluation(5, {"mIoU": 0.5}, "mIoU 50%")  # its time is not training's
        now.seconds += 2.0
        logger.add_input_wait(3.0)
        logger.record_training(6, VALUES)
    train = [r for r in records(tmp_path) if r["kind"] == "train"]
    assert [r["steps_per_second"] for r in train] == [0.5, 1.0, 0.5]
    assert [r["images_per_second"] for r in train] == [8.0, 16.0, 8.0]
    assert [r["input_wait_share"] for r in train] == [0.25, 0.0, 1.0]
    assert all(r["loss"] == 0.5 for r in train)


def test_the_first_step_s_compilation_counts_for_no_speed(tmp_path, now, capfd):
    with RunLogger(tmp_path, steps=10, start=5) as logger:
        now.seconds += 100.0
        logger.advance()
        logger.record_training(6, VALUES)
        assert "images/s" not in capfd.readouterr().err
        now.seconds += 2.0
        logger.advance()
        logger.record_training(7, VALUES)
    assert [r["steps_per_second"] for r in records(tmp_path)] == [None, 0.5]


def test_the_bar_shows_images_per_second(tmp_path, capfd, now):
    with RunLogger(tmp_path, steps=10, start=0, images_per_step=16) as logger:
        now.seconds += 4.0
        logger.record_training(2, VALUES)
    assert "8 images/s" in capfd.readouterr().err


def test_a_value_that_is_no_number_is_null(tmp_path):
    with RunLogger(tmp_path, steps=10, start=0) as logger:
        logger.record_training(1, VALUES | {"loss": float("nan")})
    assert records(tmp_path)[0]["loss"] is None


def test_the_peak_of_a_cpu_is_that_of_the_process(tmp_path):
    before, held = memory.device_memory(), psutil.Process().memory_info().rss
    assert np.ones(round((before - held) / 8) + 10_000_000).sum() > 0  # on top of what there is
    assert memory.device_memory() > before + 50e6
    with RunLogger(tmp_path, steps=10, start=0) as logger:
        logger.record_training(1, VALUES)
    assert records(tmp_path)[0]["peak_memory_gb"] >= (before + 50e6) / 1e9


@pytest.mark.parametrize(
    ("peaks", "expected"), [([3e9, 5e9, None], 5e9), ([None, None], float("nan"))]
)
def test_the_peak_of_accelerators_is_the_highest_known(monkeypatch, peaks, expected):
    stats = [None if peak is None else {"peak_bytes_in_use": int(peak)} for peak in peaks]
    devices = [SimpleNamespace(platform="gpu", memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    np.testing.assert_equal(memory.device_memory(), expected)


def test_other_processes_write_and_print_nothing(tmp_path, capfd, wandb):
    with RunLogger(tmp_path, steps=10, start=0, wandb_project="segret", active=False) as logger:
        logger.advance()
        logger.add_input_wait(0.1)
        logger.record_training(1, VALUES)
        logger.record_evaluation(1, {"mIoU": 0.5}, "mIoU 50%")
        logger.picture(1, tmp_path / "picture.png")
        logger.info("hello")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert not wandb.calls


KEPT = ['{"kind": "train", "step": 1}', '{"kind": "validation", "step": 2}']


@pytest.mark.parametrize(
    "last",
    ['{"kind": "tra', '{"kind": "train", "step": 2', "\0\0\0", "\xff\xfe", "17", '{"loss": 1}'],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path, last, end):
    later = '{"kind": "train", "step": 3}'
    text = "\n".join([*KEPT, later, last]) + end
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("latin-1"))
    with RunLogger(tmp_path, steps=10, start=2) as logger:
        logger.record_evaluation(3, {"mIoU": 0.5}, "mIoU 50%")
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3]


def test_a_whole_line_without_its_end_is_kept_and_the_next_one_begins_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(KEPT))
    with RunLogger(tmp_path, steps=10, start=2) as logger:
        logger.record_evaluation(3, {"mIoU": 0.5}, "mIoU 50%")
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3]


def test_a_kill_while_records_are_dropped_loses_none(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(KEPT) + "\n")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        RunLogger(tmp_path, steps=10, start=1)
    assert file.read_text().splitlines() == KEPT


def test_a_full_disk_at_the_start_is_one_line(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "metrics.jsonl").write_text("\n".join(KEPT) + "\n")
    monkeypatch.setattr(files.Path, "replace", full)
    with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: No space"):
        RunLogger(tmp_path, steps=10, start=1)


def test_wandb_gets_the_same_scalars_and_the_pictures(tmp_path, wandb):
    workdir, config = tmp_path / "camvid_tiny", {"train.steps": 10}
    workdir.mkdir()
    picture = workdir / "picture.png"
    with RunLogger(workdir, steps=10, start=0, wandb_project="segret", config=config) as logger:
        logger.record_training(1, VALUES)
        logger.record_evaluation(1, {"mIoU": 0.5}, "mIoU 50%")
        logger.picture(1, picture)
    (settings,) = wandb.called("init")
    assert settings == {
        "project": "segret", "dir": str(workdir), "name": "camvid_tiny", "resume": "allow",
        "config": config, "id": (workdir / "wandb_id").read_text(),
    }  # fmt: skip
    (first, train), (_, validation), (_, pictures) = wandb.called("log")
    assert first == 1
    record = records(workdir)[0]
    assert train == {
        f"train/{k}": v for k, v in record.items() if k not in ("kind", "step", "seconds")
    }
    assert train["train/loss"] == 0.5
    assert validation == {"validation/mIoU": 0.5}
    assert pictures == {"validation/picture": ("image", str(picture))}
    assert wandb.called("finish") == [0]


def test_resumed_run_keeps_its_wandb_id(tmp_path, wandb):
    for name in ("one", "one", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
        RunLogger(tmp_path / name, steps=10, start=0, wandb_project="p").__exit__(None, None, None)
    one, again, two = (settings["id"] for settings in wandb.called("init"))
    assert one == again != two
    assert len(one) == 8


def test_failed_run_is_marked_failed_in_wandb(tmp_path, wandb):
    with (
        pytest.raises(InputError),
        RunLogger(tmp_path, steps=10, start=0, wandb_project="segret"),
    ):
        raise InputError("not finite")
    assert wandb.called("finish") == [1]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_wandb_failure_is_reported_once_and_training_continues(tmp_path, capfd, wandb, broken):
    wandb.broken = {broken}
    with RunLogger(tmp_path, steps=10, start=0, wandb_project="segret") as logger:
        for step in (1, 2):
            logger.record_training(step, VALUES)
            logger.picture(step, tmp_path / "picture.png")
    out = capfd.readouterr().out
    assert out == f"W&B: {broken}: no network; training continues without it\n"
    assert len(records(tmp_path)) == 2
    assert len(wandb.called("log")) == {"init": 0, "log": 1, "finish": 4}[broken]


def test_a_missing_package_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"'segret'.*pip install wandb$") as error:
        RunLogger(tmp_path, steps=10, start=0, wandb_project="segret")
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_wandb_left_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"pip install wandb$"):
        RunLogger(tmp_path, steps=10, start=0, wandb_project="segret")
    sys.modules.pop("wandb", None)
