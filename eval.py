"""Evaluate a checkpoint: python eval.py --workdir runs/demo (or --checkpoint PATH).

The config saved beside the checkpoint is used; --config FILE replaces it, --config.KEY=VALUE
changes it. Writes metrics.json, with the protocol that compare.py reads, per_image.npz and the
confusion matrix.
"""

from pathlib import Path

import numpy as np

from segret_jax import cli
from segret_jax.config import check_segmentation
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--config", help="default: the config saved with the checkpoint")
    parser.add_argument("--workdir", type=Path, help="a run's folder: its best checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint's folder")
    parser.add_argument("--out", type=Path, help="default: evaluation/ in the run's folder")
    parser.add_argument("--overlays", action="store_true", help="write one of each image, too")
    parser.add_argument("--processes", help="auto, or INDEX/COUNT@HOST:PORT of process 0")
    args, overrides = parser.parse(argv)

    from segret_jax import compilation, processes  # heavy imports, after the arguments
    from segret_jax.data.pipeline import class_table, open_source
    from segret_jax.evaluation import results
    from segret_jax.evaluation.evaluate import evaluate
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.evaluation.visualize import overlay, save_png
    from segret_jax.training import checkpoint as checkpoints

    processes.start(args.processes)
    compilation.use_cache()
    where = args.checkpoint or args.workdir or _default_workdir(args.config)
    checkpoint = checkpoints.find(where)
    base = cli.load_config_file(args.config) if args.config else checkpoints.load_config(checkpoint)
    config = cli.apply_overrides(base, overrides)
    check_segmentation(config.model)
    table = class_table(config.data)
    checkpoints.check_table(checkpoint, table)
    source = open_source(config.data, "validation")
    predictor = Predictor(*checkpoints.load_model(checkpoint, config), config.eval)
    out = args.out or checkpoint.parent.parent / "evaluation"

    results.prepare_folder(out)  # one that cannot be written is told before the work

    def save_overlay(name: str, image: np.ndarray, pred: np.ndarray) -> None:
        save_png(overlay(image, pred, table), out / "overlays" / f"{name}.png")

    result = evaluate(
        predictor,
        source,
        table,
        detailed=True,
        skip_faulty=config.data.on_error == "skip",
        announce=print if processes.is_first() else None,
        on_prediction=save_overlay if args.overlays else None,
    )
    assert result is not None  # it was not cancelled
    if not processes.is_first():
        return
    print(f"{result.per_class(table)}\n\n{checkpoint}: {result.summary()}")
    file = results.save(
        out, result, predictor, source, config=config, table=table, checkpoint=checkpoint
    )
    print(f"written to {file}")


def _default_workdir(config: str | None) -> Path:
    if config is None:
        raise InputError("give --workdir or --checkpoint, or the --config of a run in runs/")
    return Path("runs") / Path(config).stem


if __name__ == "__main__":
    cli.run(main)
