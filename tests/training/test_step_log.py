"""What the log says of steps: means, skipped steps, and compilations that should not be."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.run.logger import RunLogger
from segret_jax.training.step_log import StepLog
from tests.checkpoint.test_checkpoint import state_of


class FakeLogger(RunLogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.records: list[dict[str, Any]] = []

    def info(self, message: str) -> None:
        self.said.append(message)

    def advance(self) -> None: ...

    def record_training(self, step: int, values: dict[str, float]) -> None:
        self.records.append({"step": step, **values})


@pytest.fixture
def log(mini) -> StepLog:
    return StepLog(Config(), FakeLogger(), jax.jit(lambda batch: batch["image"].sum()))


def test_a_recompiled_step_is_reported_with_its_shapes(log):
    for step, size in enumerate((4, 4, 4, 5, 5), start=1):
        batch = {"image": jnp.zeros((2, size, size, 3))}
        log._train_step(batch)
        log.report_compilation(step, batch)
    assert log.logger.said == [
        "step 4 was recompiled (2 times so far), for image float32[2, 5, 5, 3]"
    ]


def test_means_leave_out_what_was_not_finite_and_say_how_often(log):
    for loss in (1.0, float("nan"), 3.0):
        log.add({"loss": jnp.float32(loss), "accuracy": jnp.float32(10 * loss)})
    log.skipped += 2
    log.write(3, replace(state_of(3), num_bad=np.int32(1)))
    (record,) = log.logger.records
    assert record["loss"] == 2.0
    assert record["accuracy"] == 20.0
    assert record["skipped_samples"] == 2
    assert log.logger.said == ["loss or gradient is not finite: skipped step 2"]
    assert record["learning_rate"] == float(log.schedule(1)) != float(log.schedule(2))


def write_steps(log: StepLog, num_steps: int, skipped: int) -> None:
    for _ in range(num_steps):
        log.add({"loss": jnp.float32(0), "accuracy": jnp.float32(0)})
        log.skipped += skipped
    log.write(50, state_of(3))


def test_samples_that_are_all_skipped_for_long_stop_the_run(log):
    write_steps(log, 12, skipped=16)
    write_steps(log, 12, skipped=15)  # one that could be read: counted anew
    write_steps(log, 12, skipped=16)
    with pytest.raises(InputError, match="all 384 samples of the last 24 steps, up to step 50, w"):
        write_steps(log, 12, skipped=16)
