"""Score a checkpoint on validation images.

  segret eval --workdir runs/demo

The config saved with the checkpoint is used; --config replaces it, --config.KEY=VALUE changes it.
Writes report.html, a page to look at; metrics.json, which `segret compare` reads, per_image.npz,
the confusion matrix, and gallery.npz with the pictures of the page. The result of another
checkpoint or under other settings is never replaced.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segret_jax.checkpoint.folders import find
from segret_jax.cli import arguments as cli
from segret_jax.config import check_segmentation
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Evaluate the checkpoint that `argv` names."""
    parser = cli.Parser("eval", __doc__)
    parser.add_argument("--config", help="default: the config saved with the checkpoint")
    parser.add_argument("--workdir", type=cli.existing, help="a run's folder: its best checkpoint")
    parser.add_argument("--checkpoint", help=cli.MODEL_HELP)
    parser.add_argument("--out", type=Path, help="default: RUN/evaluation, or beside CHECKPOINT")
    parser.add_argument("--overlays", action="store_true", help="also draw the predictions")
    parser.add_argument("--processes", help=cli.PROCESSES_HELP)
    args, overrides = parser.parse(argv)
    if not (args.checkpoint or args.workdir or args.config):
        raise InputError("give --workdir or --checkpoint, or the --config of a run in runs/")
    where = args.checkpoint or args.workdir or Path("runs") / Path(args.config).stem
    checkpoint = find(where)
    cli.begin(args.processes)

    from segret_jax.checkpoint import model as checkpoints
    from segret_jax.data.pipeline import class_table, open_source
    from segret_jax.evaluation import results
    from segret_jax.evaluation.evaluate import evaluate
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.evaluation.protocol import known_in_advance
    from segret_jax.parallel import processes

    base = cli.load_config_file(args.config) if args.config else checkpoints.load_config(checkpoint)
    config = cli.apply_overrides(base, overrides)
    check_segmentation(config.model)
    table = class_table(config.data)
    checkpoints.check_table(checkpoint, table)
    source = open_source(config.data, "validation")
    bundle = checkpoints.load_model(checkpoint, config)
    predictor = Predictor.from_config(bundle, config)
    out = args.out or results.default_folder(_beside(where, checkpoint))
    names = [*map(source.name, range(len(source)))]
    known = known_in_advance(
        config, table, split="validation", names=names, variables=predictor.variables
    )
    results.prepare_folder(out, known)  # before the work: the folder may not be writable
    draw = _overlay_writer(out / "overlays", names, table) if args.overlays else None
    skip, show = config.data.on_error == "skip", print if processes.is_primary() else None
    result = evaluate(
        predictor, source, table, detailed=True, skip_faulty=skip, announce=show, on_prediction=draw
    )
    assert result is not None  # not canceled
    if not processes.is_primary():
        return
    file = results.save(  # before printing, which may fail: a closed pipe, a name not ASCII
        out, result, predictor, source, config=config, table=table, checkpoint=checkpoint
    )
    _write_report(out)
    print(f"{result.per_class(table)}\n\n{checkpoint}: {result.summary()}\nwritten to {file}")


def _write_report(folder: Path) -> None:
    from segret_jax.report import page
    from segret_jax.run import description

    description.try_write(folder)
    page.try_write(folder, print)


def _beside(given: str | Path, checkpoint: Path) -> Path:
    """Return where results lie: beside a user's folder, else in the current one.

    A model from the Hub lies in a cache, one that ships in the package.
    """
    return checkpoint if Path(given).expanduser().exists() else Path(Path(given).name)


def _overlay_writer(
    folder: Path, names: Sequence[str], table: Any
) -> Callable[[str, Any, Any], None]:
    """Return a function that writes overlays; InputError if one would replace a user's file."""
    from segret_jax.prediction.outputs import check_replaceable, source_info
    from segret_jax.visualize.pictures import overlay, save_png

    files = {name: folder / f"{name}.png" for name in names}
    check_replaceable({file: source_info(name) for name, file in files.items()})

    def write(name: str, image: Any, pred: Any) -> None:
        save_png(overlay(image, pred, table), files[name], info=source_info(name))

    return write
