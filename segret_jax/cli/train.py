"""Train a model, or continue a run.

  segret train --config ade_tiny --config.data.root=DIR

The same command goes on where an earlier one stopped.
"""

from pathlib import Path

from segret_jax.cli import arguments as cli
from segret_jax.errors import InputError


def main(argv: list[str], *, command: str = "train", config_name: str = "") -> None:
    """Train what `argv` names; by default the config `config_name`."""
    parser = cli.Parser(command, __doc__)
    if not config_name:
        parser.add_argument("--config", help="the name of a shipped config, or your own FILE.py")
    parser.add_argument("--workdir", type=Path, help="default: runs/NAME_OF_THE_CONFIG")
    parser.add_argument("--processes", help="auto, or INDEX/COUNT@HOST:PORT of process 0")
    parser.add_argument("--profile", help="START:STOP, the steps to trace for xprof")
    parser.add_argument("--wandb", default="", help="a project of Weights & Biases to log to")
    args, overrides = parser.parse(argv)
    name = config_name or args.config
    if not name:
        names = ", ".join(cli.shipped_configs())
        raise InputError(f"give --config NAME ({names}) or FILE.py; `segret demo` needs no data")
    config = cli.apply_overrides(cli.load_config_file(name), overrides)
    workdir = args.workdir or Path("runs") / Path(name).stem
    cli.begin(args.processes)

    from segret_jax.data.pipeline import class_table  # heavy imports, after the arguments
    from segret_jax.parallel import processes
    from segret_jax.run import profiler
    from segret_jax.training.loop import train

    steps = profiler.parse(args.profile, config.train.steps) if args.profile else ()
    result = train(config, workdir, profile=steps, wandb_project=args.wandb)
    if result is None or not processes.is_primary():
        return
    per_class = result.per_class(class_table(config.data))
    print(f"\n{per_class}\n\n{result.summary()}\nPictures: {workdir / 'pictures'}")
