"""Train a model, or continue a run.

  segret train --config ade_tiny --config.data.root=DIR

The same command continues a run that was stopped.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from segret_jax.cli import arguments as cli
from segret_jax.cli import program
from segret_jax.config import flatten
from segret_jax.data.names import check_dataset
from segret_jax.errors import InputError


def main(argv: list[str], *, demo: str = "") -> None:
    """Train what `argv` names, or the config `demo` for the command of that description."""
    parser = cli.Parser("demo" if demo else "train", demo or __doc__)
    if not demo:
        parser.add_argument("--config", help="the name of a shipped config, or your own FILE.py")
    parser.add_argument("--workdir", type=Path, help="default: runs/NAME_OF_THE_CONFIG")
    parser.add_argument("--processes", help=cli.PROCESSES_HELP)
    parser.add_argument("--profile", help="START:STOP, the steps to trace for xprof")
    parser.add_argument("--wandb", default="", help="a project of Weights & Biases to log to")
    args, overrides = parser.parse(argv)
    name = "demo" if demo else args.config
    if not name:
        names = ", ".join(cli.shipped_configs())
        raise InputError(f"give --config NAME ({names}) or FILE.py; `segret demo` needs no data")
    config = cli.load_config_file(name)
    as_given = flatten(config)
    config = cli.apply_overrides(config, overrides)
    check_dataset(config.data.dataset)
    workdir = args.workdir or Path("runs") / Path(name).stem
    steps = parse_steps(args.profile, config.train.steps) if args.profile else ()
    cli.begin(args.processes)

    from segret_jax.data.pipeline import class_table
    from segret_jax.evaluation.results import REPORT
    from segret_jax.parallel import processes
    from segret_jax.run.description import Recipe
    from segret_jax.training.loop import train

    if processes.is_primary():
        program.print_huge_pages()
    recipe = Recipe(Path(name).stem, as_given)
    result = train(config, workdir, profile=steps, wandb_project=args.wandb, recipe=recipe)
    if result is None or not processes.is_primary():
        return
    per_class = result.per_class(class_table(config.data))
    print(f"\n{per_class}\n\n{result.summary()}")
    print(f"report written to {workdir / REPORT}: open it in a browser")
    if demo:
        beside_python = os.path.relpath(Path(sys.executable).with_name("segret"))
        print(f"next: {'segret' if shutil.which('segret') else beside_python} serve {workdir}")


def parse_steps(text: str, last: int) -> range:
    """Parse the steps to trace.

    Args:
        text: "START:STOP", two step numbers, both included, counted from 1.
        last: The number of steps of the run; 0 if it is not known yet.

    Raises:
        InputError: `text` is malformed, or the run ends before START.
    """
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    start, stop = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= start <= stop:
        raise InputError(
            f"steps to profile {text!r}: should be START:STOP, two step numbers with "
            "1 <= START <= STOP, such as 10:14"
        )
    if 0 < last < start:
        raise InputError(f"steps to profile {text!r}: the run has only {last} (train.steps)")
    return range(start, stop + 1)
