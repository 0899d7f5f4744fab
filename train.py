"""Train a model: python train.py --config configs/demo.py [--workdir DIR] [--config.KEY=VALUE …].

The same command goes on where an earlier one stopped.
"""

from pathlib import Path

from segret_jax import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--config", required=True, help="a file in configs/, or your own")
    parser.add_argument("--workdir", type=Path, help="default: runs/NAME_OF_THE_CONFIG")
    parser.add_argument("--processes", help="auto, or INDEX/COUNT@HOST:PORT of process 0")
    parser.add_argument("--profile", help="START:STOP, the steps to trace for xprof")
    parser.add_argument("--wandb", default="", help="a project of Weights & Biases to log to")
    args, overrides = parser.parse(argv)
    config = cli.apply_overrides(cli.load_config_file(args.config), overrides)
    workdir = args.workdir or Path("runs") / Path(args.config).stem

    from segret_jax import compilation, processes  # heavy imports, after the arguments
    from segret_jax.data.pipeline import class_table
    from segret_jax.training import profile
    from segret_jax.training.loop import train

    processes.start(args.processes)
    compilation.use_cache()
    steps = profile.parse(args.profile, config.train.steps) if args.profile else None
    result = train(config, workdir, profile=steps, wandb_project=args.wandb)
    if result is None or not processes.is_first():
        return
    per_class = result.per_class(class_table(config.data))
    print(f"\n{per_class}\n\n{result.summary()}\nPictures: {workdir / 'pictures'}")


if __name__ == "__main__":
    cli.run(main)
