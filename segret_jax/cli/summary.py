"""Parameters, multiply-adds and memory of a model.

  segret summary --model segret_tiny --size 512x2048

No weight is allocated.
"""

import re

from segret_jax.cli import arguments as cli
from segret_jax.config import Config, ModelConfig, choose_family
from segret_jax.errors import InputError, unknown_name
from segret_jax.models.families import FAMILIES

MODELS = {f"{name}_{v}": (name, v) for name, one in FAMILIES.items() for v in one.variants}


def parse_size(text: str) -> tuple[int, int]:
    """Read "512x2048" as (height, width); raise InputError if it is not that."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(f"--size is {text!r}; it takes HEIGHTxWIDTH in pixels, such as 512x2048")
    return int(match[1]), int(match[2])


def published_model(name: str) -> ModelConfig:
    """Return the settings of a published model; raise InputError with the nearest name."""
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    family, variant = MODELS[name]
    model = ModelConfig(variant=variant)
    choose_family(model, family)
    return model


def main(argv: list[str]) -> None:
    """Print the summary of the model that `argv` names."""
    parser = cli.Parser("summary", __doc__)
    parser.add_argument("--model", default="segret_tiny", help=", ".join(MODELS))
    parser.add_argument("--size", default="512x2048", help="HEIGHTxWIDTH of the input, in pixels")
    parser.add_argument("--num_classes", type=int, default=150)
    parser.add_argument("--batch", type=int, default=1, help="images")
    args, overrides = parser.parse(argv)
    config = Config(model=published_model(args.model))
    if min(args.num_classes, args.batch) < 1:
        raise InputError("--num_classes and --batch take whole numbers from 1")
    size = parse_size(args.size)
    model = cli.apply_overrides(config, overrides).model

    from segret_jax.models.summary import summarize

    print(summarize(model, args.num_classes, size, batch=args.batch))
