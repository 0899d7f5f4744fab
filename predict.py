"""Segment your own pictures: python predict.py IMAGE|DIR --checkpoint runs/demo --out DIR.

Writes, for each picture, NAME_label.png (class ids, 8 bits), NAME_overlay.png (with a legend).
"""

import itertools
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from segret_jax import cli
from segret_jax.config import check_segmentation
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("input", type=Path, metavar="IMAGE|DIR")
    parser.add_argument("--checkpoint", type=Path, required=True, help="or a run's folder")
    parser.add_argument("--out", type=Path, required=True)
    args, overrides = parser.parse(argv)
    files = _images(args.input)

    from segret_jax import compilation  # heavy imports, after the arguments
    from segret_jax.data.decode import decode_image
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.evaluation.visualize import overlay, save_png, with_legend
    from segret_jax.training import checkpoint as checkpoints

    compilation.use_cache()
    checkpoint = checkpoints.find(args.checkpoint)
    config = cli.apply_overrides(checkpoints.load_config(checkpoint), overrides)
    check_segmentation(config.model)
    table = checkpoints.load_table(checkpoint)
    predictor = Predictor(*checkpoints.load_model(checkpoint, config), config.eval)
    for file in tqdm(files, "predict", unit="image", disable=len(files) == 1):
        image = decode_image(file, upright=True)
        pred = predictor.label_map(image)
        save_png(pred, args.out / f"{file.stem}_label.png")
        picture = with_legend(overlay(image, pred, table), table, [pred])
        save_png(picture, args.out / f"{file.stem}_overlay.png")
    print(f"{len(files)} segmented with {checkpoint}, written to {args.out}")


def _images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"there is no image or folder {path}")
    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in readable)
    if not files:
        raise InputError(f"no images in {path}")
    for one, other in itertools.pairwise(files):
        if one.stem == other.stem:
            raise InputError(f"{one} and {other} would be written to the same files: rename one")
    return files


if __name__ == "__main__":
    cli.run(main)
