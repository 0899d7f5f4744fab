"""Train configs/camvid_tiny.py on a GPU for a given time.

    python -m benchmarks.gpu_train --out DIR --root CAMVID --seconds 420
    python -m benchmarks.gpu_train --out DIR --dry-run     # six steps of a toy model, any device

The learning rate goes down to its end in the time there is: the number of steps is estimated from
the time of the steps so far. DIR gets six files: result.json (scores, curve, settings), curve.png,
overlays.png, and the weights as float16 safetensors in parts of at most 15 MB with their index.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import curve, sharded
from benchmarks.gpu import results, toy
from benchmarks.machine import machine
from benchmarks.timed_run import MANY, Run
from configs import camvid_tiny
from segret_jax.cli import program
from segret_jax.config import Config
from segret_jax.convert.exporting import export_tensors
from segret_jax.data.class_table import ClassTable
from segret_jax.data.pipeline import class_table
from segret_jax.evaluation.evaluate import Picture, Result
from segret_jax.models.factory import abstract
from segret_jax.run import compilation
from segret_jax.visualize.legend import add_legend
from segret_jax.visualize.pictures import overlay, save_png


def main(argv: list[str]) -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_train"), help="of the results")
    parser.add_argument("--root", default="", help="folder of CamVid; default: data/camvid")
    parser.add_argument("--seconds", type=float, default=420, help="of the whole command")
    parser.add_argument("--dry-run", action="store_true", help="six steps of a toy model")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    compilation.use_cache()
    config = dry_config() if args.dry_run else recipe(args.root)
    run = Run(config, begun + args.seconds, max_steps=6 if args.dry_run else MANY)
    result = run.train()
    write(args.out, run, result, {"dry_run": args.dry_run, "seconds": time.monotonic() - begun})
    print(f"{run.count} steps, {result.summary()}; results in {args.out}")


def recipe(root: str) -> Config:
    """Return camvid_tiny in bfloat16, with a warmup for a run of minutes."""
    config = camvid_tiny.get_config()
    config.data.root = root
    config.model.dtype = "bfloat16"
    config.optim.warmup_steps = 200
    return config


def dry_config() -> Config:
    """Return a config of the same kind that any machine runs in seconds."""
    toy.add()
    jax.config.update("jax_disable_most_optimizations", True)  # a few steps: compile fast
    config = recipe("")
    config.data.dataset, config.data.workers = "synthetic", 0
    config.data.crop = config.data.synthetic_size = config.data.resize_base = (32, 32)
    config.data.synthetic_train, config.data.synthetic_validation = 8, 2
    config.model.variant, config.model.dtype = toy.NAME, "float32"
    config.optim.warmup_steps = 2
    config.train.batch_size = 2 * jax.device_count()
    config.eval.resize_target, config.eval.pictures = (32, 32), 2
    return config


def write(folder: Path, run: Run, result: Result, facts: dict[str, Any]) -> None:
    """Write the six files."""
    table = class_table(run.config.data)
    bundle = abstract(run.config.model, table.num_classes)._replace(**run.model)
    sharded.write(folder, export_tensors(run.config.model, table.num_classes, bundle))
    losses = [(x["step"], x["loss"]) for x in run.losses]
    save_png(curve.draw(losses, [(x["step"], x["mIoU"]) for x in run.scores]), folder / "curve.png")
    save_png(overlays(result.pictures, table), folder / "overlays.png")
    content = {
        **facts, **machine(), "commit": results.commit(), "steps": run.count,
        "metrics": result.to_dict(table), "evaluations": run.scores, "curve": run.losses,
        "config": dataclasses.asdict(run.config),
    }  # fmt: skip
    text = json.dumps(content, indent=1) + "\n"
    (folder / "result.json").write_text(text, encoding="utf-8")


def overlays(pictures: list[Picture], table: ClassTable) -> np.ndarray:
    """Draw label and prediction over each image, all of one size, and a legend below."""
    rows = [
        np.concatenate([overlay(image, label, table), overlay(image, pred, table)], axis=1)
        for image, label, pred in pictures
    ]
    labels = [labels for _, *both in pictures for labels in both]
    return add_legend(np.concatenate(rows), table, labels)


if __name__ == "__main__":
    program.run(main)
