"""The branch of `segret predict` for --ray."""

import argparse
import re
import sys
from itertools import islice
from pathlib import Path
from typing import NoReturn

from segret_jax.cli import arguments as cli
from segret_jax.config import check_segmentation
from segret_jax.errors import InputError
from segret_jax.run import interrupts

DEFAULT_SAVE = "overlay,label"
ADDRESS = re.compile(r"local|auto|(ray://)?[\w.\-\[\]]+:\d+")


def run(
    args: argparse.Namespace, overrides: list[str], checkpoint: Path, weights: Path | str
) -> NoReturn:
    """Segment pictures on Ray and write rows; exit with 0, or 1 if some could not be read."""
    cpus = _check(args)

    import jax

    # The GPUs are for the models' own processes.
    jax.config.update("jax_platforms", "cpu")

    from segret_jax.checkpoint import model as checkpoints
    from segret_jax.data.folders import plural
    from segret_jax.prediction import on_ray

    on_ray.require_ray()

    from segret_jax.prediction.inputs import MAX_NAMED
    from segret_jax.prediction.paths import find_paths
    from segret_jax.prediction.rows import RowFolder

    folder = RowFolder(args.out)
    paths, notes = find_paths(args.inputs, recursive=args.recursive)
    config = cli.apply_overrides(checkpoints.load_config(checkpoint), overrides)
    check_segmentation(config.model)
    table = checkpoints.load_table(checkpoint)
    with on_ray.connected(args.ray):
        variables = checkpoints.load_model(checkpoint, config).variables
        model = on_ray.HostModel(config, table, jax.device_get(variables))
        folder.claim(model.settings())
        before = folder.finished()
        remaining = [path for path in paths if path not in before]
        print(f"{len(paths)} pictures, {len(paths) - len(remaining)} of them segmented before")
        if not remaining:
            print(f"nothing left to do: {args.out} has the rows of all")
        else:
            on_ray.predict_on_ray(model, remaining, folder, cpus=cpus)
    rows = folder.finished()
    missing = sum(path not in rows for path in paths)
    failed = sum(rows.get(path, False) for path in paths)
    done = plural(len(paths) - missing - failed, "picture")
    print(f"{done} segmented with {weights}, rows in {args.out}")
    print(*notes, sep="\n", end="\n" * bool(notes))
    if missing:
        raise InputError(
            f"{missing} rows are not in {args.out}: it must be a bucket or a disk of all machines"
        )
    if failed:
        shown = [*islice(folder.failures(), MAX_NAMED)]
        more = f"; the first {len(shown)}" if failed > len(shown) else ""
        print(f"{failed} could not be read{more}:", *shown, sep="\n", file=sys.stderr)
    # Ray's threads can abort Python's own end after a model of theirs was killed.
    interrupts.quit_at_once(sys.stdout.flush, status=int(failed > 0))


def _check(args: argparse.Namespace) -> int | None:
    """Return the CPU cores of each model; raise InputError for options that are not for Ray."""
    if not ADDRESS.fullmatch(args.ray):
        raise InputError(
            f"--ray {args.ray} is no address (HOST:PORT or auto); without one, give --ray last"
        )
    if args.names or not args.legend or args.save != DEFAULT_SAVE:
        options = "--save, --names and --no-legend"
        raise InputError(f"with --ray, rows hold labels and shares: leave {options} out")
    if (cpus := args.cpus_per_model) is not None:
        cpus = cli.whole_number("--cpus-per-model", cpus, "CPU cores")
    return cpus
