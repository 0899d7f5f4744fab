"""Tell whether two results are comparable, and how far they are apart.

  segret compare A/metrics.json B/metrics.json

Says whether they were made by one protocol; if so, how far B is from A, with a 95% interval over
images. Exit status: 0 comparable, 1 not comparable, 2 error.
"""

import sys

from segret_jax.cli import arguments as cli
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Compare the two results that `argv` names."""
    parser = cli.Parser("compare", __doc__, has_settings=False)
    parser.add_argument("a", type=cli.existing, metavar="A", help="a metrics.json")
    parser.add_argument("b", type=cli.existing, metavar="B", help="another")
    args = parser.parse_args(argv)
    if others := [file for file in (args.a, args.b) if file.suffix != ".json"]:
        raise InputError(f"{others[0]}: give a metrics.json, which segret eval writes")

    from segret_jax.evaluation import compare
    from segret_jax.evaluation.results import read

    a, b = read(args.a), read(args.b)
    print(f"A  {a.file}  protocol {a.protocol['id']}\nB  {b.file}  protocol {b.protocol['id']}")
    _section("Incomplete", compare.left_out(a, b))
    reasons = compare.differences(a, b)
    _section("NOT COMPARABLE, since these differ", reasons)
    _section("Differs, allowed", compare.allowed(a, b))
    if reasons:
        sys.exit(1)
    print(f"\nComparable: {len(a.names)} images. In brackets 95% intervals over images.")
    print(compare.difference(a, b))


def _section(title: str, lines: list[str]) -> None:
    if lines:
        print("\n  ".join([f"\n{title}:", *lines]))
