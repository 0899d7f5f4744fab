"""Write a smaller copy of CamVid: the same sizes, fewer bytes.

    python scripts/small_camvid.py CAMVID [--out .gpu/camvid] [--quality 85]

Images become JPEG of the given quality, labels 8-bit PNG as small as PNG can be. The layout is
images/training, annotations/training and so on, with class ids and 255 for void, as docs/data.md
has it; CAMVID is of any layout that `data.dataset=camvid` reads.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from segret_jax.config import DataConfig  # noqa: E402
from segret_jax.data.pipeline import open_source  # noqa: E402


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", help="the folder to copy")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu" / "camvid")
    parser.add_argument("--quality", type=int, default=85, help="of JPEG")
    args = parser.parse_args(argv)
    for split in ("training", "validation"):
        folders = [args.out / kind / split for kind in ("images", "annotations")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        source = open_source(DataConfig(dataset="camvid", root=args.camvid), split)
        for index in range(len(source)):
            sample = source[index]
            name = Path(sample["name"]).stem
            image, label = (Image.fromarray(sample[key]) for key in ("image", "label"))
            image.save(folders[0] / f"{name}.jpg", quality=args.quality)
            label.save(folders[1] / f"{name}.png", optimize=True)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
