"""Steps that take longer than the watchdog's minimum, dispatched asynchronously."""

from collections.abc import Iterator
from dataclasses import fields

import jax
import jax.numpy as jnp
import pytest

from segret_jax.checkpoint.state import TrainState
from segret_jax.config import Config
from segret_jax.run.watchdog import Watchdog
from segret_jax.training.step_log import StepLog
from tests.training.test_step_log import FakeLogger

SECONDS = 35.0  # of one step on the device
STATE = TrainState(**{field.name: 0 for field in fields(TrainState)})


class Device:
    """A device and its clock: steps run one after the other, and the host waits when it asks.

    The watchdog's thread never runs; the host looks on its behalf while it waits.
    """

    def __init__(self) -> None:
        self.now = self.free_at = 1000.0
        self.reports: list[str] = []
        self.watchdog = Watchdog(self.reports.append, clock=lambda: self.now)

    def dispatch(self, seconds: float = SECONDS) -> float:
        self.free_at = max(self.now, self.free_at) + seconds
        return self.free_at

    def wait(self, until: float) -> None:
        while self.now < until:
            self.now += min(1.0, until - self.now)
            self.watchdog._check()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device, done = Device(), jax.block_until_ready
    monkeypatch.setattr(
        jax, "block_until_ready", lambda metrics: (device.wait(metrics["ready"]), done(metrics))
    )
    return device


def train(device: Device, log: StepLog, steps: range, log_every: int, last: float) -> None:
    """Make `steps` as the loop does; the last one takes `last` seconds."""
    for step in steps:
        name = "compile" if step == 1 else "step"
        with device.watchdog.phase(name, on_device=step > 1):
            ready = device.dispatch(last if step == steps[-1] else SECONDS)
            log.add({"loss": jnp.float32(1), "accuracy": jnp.float32(1), "ready": ready})
        if step % log_every == 0:
            with device.watchdog.phase("wait for the device", on_device=True):
                device.wait(ready)
            log.write(step, STATE)


@pytest.fixture
def log(device: Device) -> StepLog:
    return StepLog(Config(), FakeLogger(), None, device.watchdog.steps_completed)


@pytest.mark.parametrize("log_every", [1, 3, 5, 20])
def test_slow_steps_of_a_healthy_run_are_no_stall(device, log, log_every):
    train(device, log, range(1, 41), log_every, last=SECONDS)
    assert device.reports == []


@pytest.mark.parametrize(("log_every", "phase"), [(3, "wait for the device"), (5, "step")])
def test_a_step_that_hangs_is_reported_with_the_usual_time_of_a_step(device, log, log_every, phase):
    steps = range(1, 13)
    train(device, log, steps, log_every, last=15 * SECONDS)
    if phase == "step":
        train(device, log, range(13, 15), log_every, last=SECONDS)
    report = device.reports[0].splitlines()[0]
    assert report.startswith(f"{phase} has been waiting for 35")
    assert report.endswith("(usually 35 s), here:")
    assert device.reports[-1].startswith(f"{phase} ended after all")


def test_a_fast_device_is_judged_by_its_own_steps(device, log, monkeypatch):
    monkeypatch.setattr("tests.training.test_slow_steps.SECONDS", 0.5)
    train(device, log, range(1, 13), 3, last=40.0)
    assert device.reports[0].startswith(
        "wait for the device has been waiting for 31 s (usually 0.5"
    )
