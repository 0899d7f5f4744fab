"""Padded programs beside one for each size: python -m benchmarks.padding --model segret_tiny.

Predicts images whose sizes are drawn from a set like ADE20K's validation set, from a cold cache, in
two processes: with the few padded sizes that `segret eval` chooses, and with none. Prints a line of
JSON of each: compiled programs, the share of padding, and the seconds of all.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.machine import machine
from segret_jax.cli.summary import published_model
from segret_jax.config import EvalConfig
from segret_jax.evaluation.padding import Size
from segret_jax.evaluation.plan import choose_padding, make_plan, tilings

SHARES = {  # assumed from common formats of cameras, at a short side of 512
    (512, 704): 0.4, (512, 768): 0.2, (512, 512): 0.05, (512, 672): 0.05, (512, 896): 0.04,
    (512, 928): 0.04, (704, 512): 0.09, (768, 512): 0.05,
}  # fmt: skip
NUM_IMAGES = 2000


def ade20k_like() -> list[Size]:
    """Return the sizes of images like ADE20K's; the rest of the shares is spread evenly."""
    sides = range(512, 2049, 32)
    every = dict.fromkeys([*((512, side) for side in sides), *((side, 512) for side in sides)])
    others = itertools.cycle(size for size in every if size not in SHARES)
    sizes = [size for size, share in SHARES.items() for _ in range(round(NUM_IMAGES * share))]
    return sizes + list(itertools.islice(others, NUM_IMAGES - len(sizes)))


def wasted(sizes: list[Size], config: EvalConfig) -> float:
    """Return the share of padding in the inputs of all images at all scales."""
    padding = choose_padding(sizes, config)
    tiles = [tiling.tile for size in sizes for tiling in tilings(size, config)]
    return 1 - sum(map(math.prod, tiles)) / sum(math.prod(padding[t] or t) for t in tiles)


def run(model: str, num_images: int, *, is_padded: bool) -> None:
    """Predict random images, and print what that took."""
    start = time.perf_counter()
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.models.factory import build
    from segret_jax.models.families import get_family

    config = published_model(model)
    min_side, evaluation = get_family(config.family).min_side, EvalConfig()
    predictor = Predictor(build(config, 150, seed=0), evaluation, min_side=min_side)
    rng = np.random.default_rng(0)
    sizes = [ade20k_like()[i] for i in rng.choice(NUM_IMAGES, num_images, replace=False)]
    padding = choose_padding(sizes, evaluation, min_side=min_side) if is_padded else {}
    plan = make_plan(
        dict(enumerate(sizes)), evaluation, 1,
        stride=predictor.stride, min_side=min_side, padding=padding,
    )  # fmt: skip
    begun = time.perf_counter()
    for (index,) in plan.batches:
        image = rng.integers(0, 256, (*sizes[index], 3)).astype(np.uint8)
        predictor.predict([predictor.prepare(image, padding=padding)])
    found = {
        "padded": is_padded,
        "images": num_images,
        "sizes": len(set(sizes)),
        "programs": len(plan.passes),
        "share_of_padding": round(wasted(sizes, evaluation), 3) if is_padded else 0.0,
        "start_s": round(begun - start, 1),
        "images_s": round(time.perf_counter() - begun, 1),
    }
    print(json.dumps(found), flush=True)


def main() -> None:
    """Run both in processes of their own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="segret_tiny")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--only", choices=["padded", "not"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        run(args.model, args.images, is_padded=args.only == "padded")
        return
    print(json.dumps(machine() | {"model": args.model}), flush=True)
    options = ["--model", args.model, "--images", str(args.images)]
    for kind in ("padded", "not"):
        command = [sys.executable, "-m", "benchmarks.padding", *options, "--only", kind]
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
