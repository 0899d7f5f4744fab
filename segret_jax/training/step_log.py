"""The metrics of the steps: kept on the device, read by the host at log steps only."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from segret_jax.checkpoint.state import TrainState
from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.parallel import processes
from segret_jax.run.logger import RunLogger
from segret_jax.training.optimizer import learning_rate_schedule

# Below these, samples that are skipped in a row may be chance.
SKIPPED_STEPS, SKIPPED_SAMPLES = 20, 100


class StepLog:
    """Collect the metrics of steps until they are written, and bound the steps in flight.

    Args:
        config: The run's config.
        logger: Receives the records and messages.
        train_step: The jitted step.
        steps_completed: Receives the number of steps that the device has completed.
    """

    def __init__(
        self, config: Config, logger: RunLogger, train_step: Any,
        steps_completed: Callable[[int], None] = lambda count: None,
    ) -> None:  # fmt: skip
        self.logger = logger
        self._train_step, self._compiled = train_step, 1
        self.schedule = learning_rate_schedule(config.optim, config.train.steps)
        self.pending: list[dict[str, jax.Array]] = []
        self.skipped = 0  # samples that this process could not read (data.on_error=skip)
        self._batch_size = config.train.batch_size
        self._skipped_before = 0  # of all processes, at the last log step
        self._skipped_steps = 0  # in a row, with nothing to learn from
        self._steps_completed, self._num_in_flight = steps_completed, 0

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keep one step's metrics.

        Waits for the step before the last two: the device always has work queued, yet batches do
        not pile up in its memory, and the progress bar tells the truth.
        """
        self.pending.append(metrics)
        self._num_in_flight += 1
        if self._num_in_flight > 2:
            jax.block_until_ready(self.pending[-3])
            self._complete(1)

    def _complete(self, count: int) -> None:
        """Count steps whose metrics are ready; a dispatched step may not have begun yet."""
        self._num_in_flight -= count
        self._steps_completed(count)
        for _ in range(count):
            self.logger.advance()

    def report_compilation(self, step: int, batch: dict[str, jax.Array]) -> None:
        """Report a step that was compiled again, which takes as long as the first time."""
        # JAX has no public name for it: its event of a compilation does not name the function.
        compiled = self._train_step._cache_size()
        if compiled > self._compiled:
            shapes = ", ".join(f"{k} {x.dtype}{list(x.shape)}" for k, x in batch.items())
            self.logger.info(f"step {step} was recompiled ({compiled} times so far), for {shapes}")
        self._compiled = max(compiled, 1)

    def write(self, step: int, state: TrainState) -> None:
        """Record the means since the last log step; of steps that were skipped only the number."""
        values = jax.device_get(self.pending)
        self.pending = []
        self._complete(self._num_in_flight)
        good = [v for v in values if not _is_skipped(v)]
        if bad := [step - len(values) + i for i, v in enumerate(values, 1) if _is_skipped(v)]:
            steps = ", ".join(map(str, bad))
            self.logger.info(f"loss or gradient is not finite: skipped step {steps}")
        means = {name: _finite_mean([v[name] for v in good]) for name in values[0]}
        # A skipped step is none for the optimizer, whose schedule goes by its own count.
        means["learning_rate"] = float(self.schedule(step - 1 - int(state.num_bad)))
        samples = sum(map(int, processes.gather(str(self.skipped).encode())))
        skipped = {"skipped_samples": samples, "skipped_steps": int(state.num_bad)}
        self.logger.record_training(step, means | skipped)
        self._check_not_all_skipped(step, len(values), samples)

    def _check_not_all_skipped(self, step: int, num_steps: int, samples: int) -> None:
        """Raise InputError, in all processes, when all samples are skipped for long.

        For example, a disk has gone. Steps without a label still change the model: its weights
        decay, and batch norm takes in blank images.
        """
        all_skipped = samples - self._skipped_before == num_steps * self._batch_size
        self._skipped_before = samples
        self._skipped_steps = self._skipped_steps + num_steps if all_skipped else 0
        num_samples = self._skipped_steps * self._batch_size
        if self._skipped_steps >= SKIPPED_STEPS and num_samples >= SKIPPED_SAMPLES:
            raise InputError(
                f"all {num_samples} samples of the last {self._skipped_steps} steps, up to step "
                f'{step}, were skipped (data.on_error=skip); the lines "skipped: ..." above name '
                "the files: make them readable, and run the same command again, which resumes from "
                "the newest checkpoint"
            )


def _is_skipped(metrics: dict[str, np.ndarray]) -> bool:
    """Tell whether the train step skipped this step, by the same two values that it looks at.

    Any other metric, such as `update_norm`, may overflow in a step that was applied.
    """
    return not all(np.isfinite(metrics[n]) for n in ("loss", "gradient_norm") if n in metrics)


def _finite_mean(values: list[Any]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
