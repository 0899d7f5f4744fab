"""Segment photographs.

  segret predict IMAGE|DIR --checkpoint runs/demo --out DIR

Writes, for each picture, NAME_label.png (class ids, 8 bits, the classes' colors as the palette) and
NAME_overlay.png (with a legend). Replaces only what it wrote before for the same picture. Pictures
that cannot be read are left out and listed at the end; the exit status is then 1.
"""

import sys
from pathlib import Path

from segret_jax.checkpoint.folders import find
from segret_jax.cli import arguments as cli
from segret_jax.config import check_segmentation
from segret_jax.models.families import get_family


def main(argv: list[str]) -> None:
    """Segment the pictures that `argv` names."""
    parser = cli.Parser("predict", __doc__)
    parser.add_argument("input", type=Path, metavar="IMAGE|DIR")
    parser.add_argument("--checkpoint", type=cli.existing, required=True, help="or a run's folder")
    parser.add_argument("--out", type=Path, required=True)
    args, overrides = parser.parse(argv)
    find(args.checkpoint)

    from segret_jax.evaluation.inputs import find_pictures
    from segret_jax.evaluation.outputs import plan_outputs

    found = find_pictures(args.input)
    planned = plan_outputs(found.files, args.out)
    cli.begin()

    from segret_jax.checkpoint import model as checkpoints
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.evaluation.prediction import segment

    checkpoint = checkpoints.find(args.checkpoint)
    config = cli.apply_overrides(checkpoints.load_config(checkpoint), overrides)
    check_segmentation(config.model)
    table = checkpoints.load_table(checkpoint)
    cli.check_folder(f"to {args.out}", args.out)
    bundle = checkpoints.load_model(checkpoint, config)
    min_side = get_family(config.model.family).min_side
    predictor = Predictor(bundle, config.eval, min_side=min_side)
    done = segment(predictor, table, found.files, planned)
    if done.faults and args.input.is_file():
        raise done.faults[0]
    summary = f"{done.count} segmented with {checkpoint}, written to {args.out}"
    print(summary, *found.notes, *done.notes(), sep="\n")
    if done.faults:
        print(f"{len(done.faults)} could not be read:", *done.faults, sep="\n", file=sys.stderr)
        sys.exit(1)
