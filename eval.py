"""Evaluate a checkpoint: python eval.py --workdir runs/demo (or --checkpoint PATH).

The config saved beside the checkpoint is used; --config FILE replaces it, --config.KEY=VALUE
changes it.
"""

import json
from pathlib import Path

import numpy as np

from segret_jax import cli
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--config", help="default: the config saved with the checkpoint")
    parser.add_argument("--workdir", type=Path, help="a run's folder: its best checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint's folder")
    parser.add_argument("--save_dir", type=Path, help="write an overlay of each image here")
    args, overrides = parser.parse(argv)

    from segret_jax.data.pipeline import class_table, open_source  # heavy, after the arguments
    from segret_jax.evaluation.evaluate import evaluate
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.evaluation.visualize import overlay, save_png
    from segret_jax.training import checkpoint as checkpoints

    where = args.checkpoint or args.workdir or _default_workdir(args.config)
    checkpoint = checkpoints.find(where)
    base = cli.load_config_file(args.config) if args.config else checkpoints.load_config(checkpoint)
    config = cli.apply_overrides(base, overrides)
    table = class_table(config.data)
    source = open_source(config.data, "validation")
    predictor = Predictor(*checkpoints.load_model(checkpoint, config), config.eval)

    def save_overlay(name: str, image: np.ndarray, pred: np.ndarray) -> None:
        save_png(overlay(image, pred, table), args.save_dir / f"{name}.png")

    result = evaluate(
        predictor,
        source,
        table,
        skip_faulty=config.data.on_error == "skip",
        on_prediction=save_overlay if args.save_dir else None,
    )
    assert result is not None  # it was not cancelled
    content = {"checkpoint": str(checkpoint), **result.to_dict(table)}
    file = (args.save_dir or checkpoint.parent.parent) / "metrics.json"
    file.write_text(json.dumps(content, indent=2) + "\n")
    print(f"{result.per_class(table)}\n\n{checkpoint}: {result.summary()}\nwritten to {file}")


def _default_workdir(config: str | None) -> Path:
    if config is None:
        raise InputError("give --workdir or --checkpoint, or the --config of a run in runs/")
    return Path("runs") / Path(config).stem


if __name__ == "__main__":
    cli.run(main)
