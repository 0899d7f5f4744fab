"""Parameters, multiply-adds and memory of a model.

  segret summary --model segret_tiny --size 512x2048

No weight is allocated.
"""

import re

from segret_jax.cli import arguments as cli
from segret_jax.config import Config, choose_family
from segret_jax.errors import InputError, unknown_name
from segret_jax.models.families import FAMILIES


def parse_size(text: str) -> tuple[int, int]:
    """Read "512x2048" as (height, width); raise InputError if it is not that."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(f"--size is {text!r}; it takes HEIGHTxWIDTH in pixels, such as 512x2048")
    return int(match[1]), int(match[2])


def main(argv: list[str]) -> None:
    """Print the summary of the model that `argv` names."""
    models = {f"{name}_{v}": (name, v) for name, one in FAMILIES.items() for v in one.variants}
    parser = cli.Parser("summary", __doc__)
    parser.add_argument("--model", default="segret_tiny", help=", ".join(models))
    parser.add_argument("--size", default="512x2048", help="HEIGHTxWIDTH of the input, in pixels")
    parser.add_argument("--num_classes", type=int, default=150)
    parser.add_argument("--batch", type=int, default=1, help="images")
    args, overrides = parser.parse(argv)
    if args.model not in models:
        raise unknown_name("model", args.model, models)
    if min(args.num_classes, args.batch) < 1:
        raise InputError("--num_classes and --batch take whole numbers from 1")
    size, config = parse_size(args.size), Config()
    family, config.model.variant = models[args.model]
    choose_family(config.model, family)
    model = cli.apply_overrides(config, overrides).model

    from segret_jax.models.summary import summarize

    print(summarize(model, args.num_classes, size, batch=args.batch))
