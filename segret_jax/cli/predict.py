"""Segment photographs and videos.

  segret predict PHOTO
  segret predict INPUT ... --checkpoint runs/demo

INPUT is a file, a folder or a pattern such as "photos/*.jpg". Writes, for each picture, what --save
names; by default NAME_overlay.png (with a legend) and NAME_label.png (class ids, 8 bits, the
classes' colors as the palette); of a video NAME_overlay.mp4. Replaces only what it wrote before for
the same input. What cannot be read is left out and listed at the end; the exit status is then 1,
or 2 if nothing could be segmented.
"""

import sys
from pathlib import Path

from segret_jax.checkpoint.folders import default_model, find
from segret_jax.cli import arguments as cli
from segret_jax.cli import predict_on_ray
from segret_jax.config import check_segmentation
from segret_jax.errors import InputError

SAVE_HELP = (
    "a list of overlay, label, color, confidence, probabilities, json, polygons, coco, cityscapes "
    "(docs/evaluation.md), of videos overlay and color alone; default: overlay,label"
)
RAY_HELP = (
    "segment millions of pictures with Ray Data, on the cluster at HOST:PORT or on this machine "
    "alone; --out is then a folder of Parquet files (docs/scale.md)"
)
CPUS_HELP = "with --ray: CPU cores of each model; default: 4, or what there is"


def main(argv: list[str]) -> None:
    """Segment the pictures that `argv` names."""
    args, overrides = _parser().parse(argv)
    args.average = cli.whole_number("--average", args.average, "frames")
    name = args.checkpoint or default_model()
    checkpoint = find(name)
    weights = checkpoint if Path(name).exists() else name
    if args.ray:
        predict_on_ray.run(args, overrides, checkpoint, weights)
    args.out = Path(args.out)

    from segret_jax.prediction.inputs import find_pictures
    from segret_jax.prediction.outputs import parse_formats, plan_outputs
    from segret_jax.prediction.video_files import is_video

    formats = parse_formats(args.save)
    found = find_pictures(args.inputs, recursive=args.recursive, formats=formats)
    if args.average > 1 and not any(map(is_video, found.pictures)):
        raise InputError(f"--average {args.average} is for videos, and there is none: leave it out")
    planned = plan_outputs(found.pictures, args.out, formats)
    cli.begin()

    from segret_jax.checkpoint import model as checkpoints
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.prediction.batch import predict_files
    from segret_jax.prediction.formats import check_formats

    config = cli.apply_overrides(checkpoints.load_config(checkpoint), overrides)
    check_segmentation(config.model)
    table = checkpoints.load_table(checkpoint)
    check_formats(formats, table)
    if not args.checkpoint:
        print(f"{name}: {table.summary}; for your own: segret train")
    cli.check_folder(f"to --out {args.out}", args.out)
    bundle = checkpoints.load_model(checkpoint, config)
    predictor = Predictor.from_config(bundle, config, stored=True)
    done = predict_files(
        predictor, table, [*found.pictures], planned,
        names=args.names, legend=args.legend, average=args.average,
    )  # fmt: skip
    if not done.count and len(planned) == 1:
        raise done.faults[0]
    files = planned[0].files.values() if len(planned) == 1 else [args.out]
    written = ", ".join(map(str, files))
    summary = f"{done.counts()} segmented with {weights}, written to {written}"
    print(summary, *found.notes, *done.notes(), sep="\n")
    if done.faults:
        print(f"{len(done.faults)} could not be read:", *done.faults, sep="\n", file=sys.stderr)
        sys.exit(1 if done.count else 2)


def _parser() -> cli.Parser:
    parser = cli.Parser("predict", __doc__)
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--checkpoint", help=f"{cli.MODEL_HELP}; default: those that ship")
    parser.add_argument("--out", default="predictions", help="default: %(default)s")
    parser.add_argument(
        "--save", default=predict_on_ray.DEFAULT_SAVE, metavar="FORMATS", help=SAVE_HELP
    )
    parser.add_argument("--names", action="store_true", help="write names on large regions")
    parser.add_argument(
        "--no-legend", dest="legend", action="store_false",
        help="write overlays without a legend, in the size of the picture",
    )  # fmt: skip
    parser.add_argument(
        "--average", default="1", metavar="N",
        help="smooth videos: average the probabilities of the last N frames; default: 1",
    )  # fmt: skip
    parser.add_argument("--recursive", action="store_true", help="also read subfolders")
    parser.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help=RAY_HELP)
    parser.add_argument("--cpus-per-model", metavar="N", help=CPUS_HELP)
    return parser
