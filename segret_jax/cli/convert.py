"""Convert PyTorch weights to a checkpoint, or back.

  segret convert SRC DST

SRC is a PyTorch file (.pth, .bin, .safetensors, .npz), a Hugging Face folder with such a file or
its shards, or a checkpoint's or run's folder. DST is a new folder for a checkpoint, or a file for
PyTorch (.safetensors, .npz; .pth where PyTorch is installed). The file tells which model it holds;
--config.model.KEY=VALUE says what it must be, --config.data.dataset=NAME or FILE.json what its
classes are.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from segret_jax.cli import arguments as cli
from segret_jax.config import Config, flatten
from segret_jax.errors import InputError

TORCH_ENDINGS = (".safetensors", ".npz", ".pth", ".pt")  # those of `exporting.WRITERS`
# Endings of files that are not written, and that no checkpoint's folder should have.
OTHER_ENDINGS = (".bin", ".ckpt", ".onnx", ".h5", ".pkl", ".msgpack")


def main(argv: list[str]) -> None:
    """Convert what `argv` names, and print a report."""
    parser = cli.Parser("convert", __doc__)
    parser.add_argument(
        "src", metavar="SRC", help="PyTorch weights, or a checkpoint or saved model"
    )
    parser.add_argument("dst", metavar="DST", type=Path, help="as above")
    parser.add_argument("--to", choices=("checkpoint", "torch"), help="default: by the name of DST")
    parser.add_argument("--config", help="recipe of this model, to save with the weights")
    parser.add_argument("--wrapper", default="", help="which state dict of a .pth: model_ema, ...")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="REGEX",
        help="tensors that may be dropped, or stay at their initial values",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, help="write the whole report to this .json")
    args, overrides = parser.parse(argv)
    base = cli.load_config_file(args.config) if args.config else Config()
    config = cli.apply_overrides(base, overrides)

    to_torch, endings = args.dst.suffix.lower() in TORCH_ENDINGS, ", ".join(TORCH_ENDINGS)
    if args.to and to_torch != (args.to == "torch"):
        raise InputError(f"{args.dst}: a file for PyTorch ends in {endings}; a checkpoint in none")
    if args.dst.exists():
        raise InputError(f"{args.dst} exists: choose another name, or delete that one")
    if args.dst.suffix.lower() in OTHER_ENDINGS:
        raise InputError(f"{args.dst}: such files are not written; use one of {endings}")
    if args.report:
        _check_report(args.report, args.dst)

    from segret_jax.checkpoint.folders import find, is_saved_model
    from segret_jax.convert.folder import find_weights

    args.src = Path(args.src) if Path(args.src).exists() else find(args.src)
    if not args.src.is_dir() or (find_weights(args.src) and not is_saved_model(args.src)):
        _from_file(args, config, overrides, to_torch=to_torch)
    elif not to_torch:
        raise InputError(f"{args.src} is a checkpoint already; a DST for PyTorch ends in {endings}")
    elif overrides or args.config or args.wrapper or args.allow or args.report:
        raise InputError(f"{args.src} is a checkpoint and knows its model: give SRC and DST only")
    else:
        _from_checkpoint(args.src, args.dst)


def _from_file(
    args: argparse.Namespace, config: Config, overrides: list[str], *, to_torch: bool
) -> None:
    from segret_jax.checkpoint.orbax_model import save_model
    from segret_jax.convert.classes import choose_classes, class_notes
    from segret_jax.convert.folder import read_source
    from segret_jax.convert.importing import import_tensors
    from segret_jax.convert.report import make_report, summary

    overridden = [one.removeprefix(cli.OVERRIDE).partition("=")[0] for one in overrides]
    keys = flatten(config) if args.config else overridden
    given = [key.removeprefix("model.") for key in keys if key.startswith(("model.", "data."))]
    dataset_given = "data.dataset" in given
    file = read_source(args.src, wrapper=args.wrapper)
    try:
        imported = import_tensors(file.tensors, config.model, given=given, allow=args.allow)
        found, config.model = imported.recognized, imported.recognized.model
        config.data.dataset, table = choose_classes(
            found, config.data.dataset, file.classes, given=dataset_given
        )
    except InputError as error:
        raise InputError(f"{args.src}: {error}") from None
    segments = found.model.task == "segmentation"
    notes = class_notes(table, file.classes, given=dataset_given) if segments else []
    report = make_report(args.src, file, imported, table, allow=args.allow, notes=notes)
    del file  # a large model need not be in memory twice while it is written
    bundle, unused = imported.bundle, imported.unused
    if to_torch:
        _write(args.dst, config, found.num_classes, bundle, unused)
    else:
        save_model(args.dst, config=config, table=table, bundle=bundle, source=report, kept=unused)
    print(f"{summary(report)}\nwritten to {args.dst}")
    if args.report:
        content = json.dumps(report, indent=1) + "\n"
        cli.write_output(f"--report {args.report}", args.report, content)


def _check_report(file: Path, dst: Path) -> None:
    """Raise InputError, before any work, if the report could not be written."""
    if file.suffix.lower() != ".json":
        raise InputError(f"--report {file}: give a name that ends in .json")
    if dst.absolute() in file.absolute().parents:
        raise InputError(f"--report {file} lies in {dst}, which keeps the report anyway: leave it")
    cli.check_folder(f"--report {file}", file.parent)


def _from_checkpoint(src: Path, dst: Path) -> None:
    from segret_jax.checkpoint import folders, orbax_model
    from segret_jax.checkpoint import model as checkpoints

    checkpoint = folders.find(src)
    config, table = checkpoints.load_config(checkpoint), checkpoints.load_table(checkpoint)
    bundle = checkpoints.load_model(checkpoint, config)
    _write(dst, config, table.num_classes, bundle, orbax_model.load_kept(checkpoint))
    print(f"{checkpoint}, written to {dst}")


def _write(dst: Path, config: Config, num_classes: int, bundle: Any, unused: Any) -> None:
    from segret_jax.convert.exporting import export_tensors, write_tensors
    from segret_jax.models.config import model_name

    tensors = export_tensors(config.model, num_classes, bundle, unused=unused)
    write_tensors(dst, tensors, {"format": "pt", "model": model_name(config.model)})
    print(f"{len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} numbers, float32")
