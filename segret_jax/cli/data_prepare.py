"""Write a dataset as ArrayRecord shards, and check every pair on the way.

  segret data prepare ade20k --source DIR --data_dir DATA_DIR [--download]

The shards go to DATA_DIR/NAME/VERSION. Run it again after an interruption; a complete
folder is left as it is.
"""

from pathlib import Path

from segret_jax.cli import arguments as cli
from segret_jax.data.names import check_dataset


def main(argv: list[str]) -> None:
    """Prepare the dataset that `argv` names."""
    parser = cli.Parser("data prepare", __doc__, has_settings=False)
    parser.add_argument("dataset", help="a name, or your own as a .json file")
    parser.add_argument("--source", type=Path, required=True, help="the folder as downloaded")
    parser.add_argument("--data_dir", required=True, help="to write to: a folder, gs:// or s3://")
    parser.add_argument("--shards", type=int, default=1, help="files per split (default: 1)")
    parser.add_argument("--download", action="store_true", help="get the archive into --source")
    args = parser.parse_args(argv)
    check_dataset(args.dataset)

    from segret_jax.data.datasets import get_dataset
    from segret_jax.data.shards.prepare import prepare

    spec = get_dataset(args.dataset)
    where = prepare(spec, args.source, args.data_dir, shards=args.shards, fetch=args.download)
    print(f"{spec.name} is in {where}; train with --config.data.root={args.data_dir}")
