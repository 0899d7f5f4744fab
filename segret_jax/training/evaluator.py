"""Evaluation in the middle of a run: scores, their protocol, and the picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from segret_jax.checkpoint.folders import FOLDER
from segret_jax.checkpoint.state import TrainState
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.data.sources import Source
from segret_jax.errors import InputError
from segret_jax.evaluation import results
from segret_jax.evaluation.evaluate import Result, evaluate
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.factory import ModelBundle
from segret_jax.parallel import processes
from segret_jax.parallel.sharding import gather_replicated
from segret_jax.report import page as report
from segret_jax.run.logger import RunLogger
from segret_jax.visualize.pictures import grid, save_png


@dataclass(frozen=True)
class Evaluator:
    """Evaluate the state of a run on the validation images."""

    config: Config
    workdir: Path
    validation: Source
    table: ClassTable
    graph: nnx.GraphDef[Any]
    mesh: Mesh
    logger: RunLogger

    def score(
        self, state: TrainState, *, again: bool, canceled: Callable[[], bool]
    ) -> Result | None:
        """Evaluate, and write scores, picture and report.

        Args:
            state: The state, on the run's mesh.
            again: Whether this step's scores are recorded already.
            canceled: Returns whether to stop.

        Returns:
            The result; None if `canceled` was true in any process.
        """
        model = gather_replicated(state.model, self.mesh)
        bundle = ModelBundle(self.graph, **model)
        predictor = Predictor.from_config(bundle, self.config)
        result = evaluate(
            predictor, self.validation, self.table, num_pictures=self.config.eval.pictures,
            skip_faulty=self.config.data.on_error == "skip", canceled=canceled,
        )  # fmt: skip
        if result is None:
            return None
        metrics, step = result.metrics, int(state.step)
        scores = {"mIoU": metrics.mean_iou, "mAcc": metrics.mean_acc, "aAcc": metrics.all_acc}
        if not again:
            self.logger.record_evaluation(step, scores, result.summary())
        try:
            if processes.is_primary():
                self._write(predictor, result, step)
        except InputError as error:  # the checkpoint is what matters
            self.logger.info(f"{error}; training continues")
        return result

    def _write(self, predictor: Predictor, result: Result, step: int) -> None:
        """Write the scores with their protocol, the picture and the report."""
        results.save(
            self.workdir, result, predictor, self.validation, config=self.config,
            table=self.table, checkpoint=Path(FOLDER, str(step)),
        )  # fmt: skip
        if result.pictures:
            title = f"step {step}, mIoU {100 * result.metrics.mean_iou:.1f}%"
            file = self.workdir / "pictures" / f"step_{step:06d}.png"
            save_png(grid(result.pictures, self.table, title=title), file)
            self.logger.picture(step, file)
        report.try_write(self.workdir, self.logger.info)
