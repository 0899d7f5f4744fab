"""Only steps that the train step really skipped are called skipped."""

import jax.numpy as jnp
import pytest

from segret_jax.config import Config
from segret_jax.training.step_log import StepLog
from tests.checkpoint.test_checkpoint import state_of
from tests.training.test_step_log import FakeLogger


@pytest.mark.parametrize("name", ["update_norm", "accuracy"])
def test_a_step_that_was_applied_is_not_called_skipped(mini, name):
    log = StepLog(Config(), FakeLogger(), jnp.sum)
    for value in (float("inf"), 3.0):
        log.add({"loss": jnp.float32(1), "gradient_norm": jnp.float32(2), name: jnp.float32(value)})
    log.write(2, state_of(2))  # num_bad is 0
    assert log.logger.said == []
    (record,) = log.logger.records
    assert (record["loss"], record[name], record["skipped_steps"]) == (1.0, 3.0, 0)
