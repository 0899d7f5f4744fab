"""Write a page with scores, curves, confusions and pictures of a run, or set runs side by side.

  segret report runs/demo
  segret report runs/a runs/b

Training and `segret eval` write this page themselves, as report.html in their folder. It is one
file that needs no network.
"""

from pathlib import Path

from segret_jax.cli import arguments as cli
from segret_jax.errors import InputError

SIDE_BY_SIDE = "comparison.html"


def main(argv: list[str]) -> None:
    """Write the page of the runs that `argv` names."""
    parser = cli.Parser("report", __doc__, has_settings=False)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run or of a result"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html",
        help=f"default: RUN/report.html; of several, {SIDE_BY_SIDE}",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.out and args.out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {args.out}: give a name that ends in .html")

    from segret_jax.evaluation.results import REPORT
    from segret_jax.pages import page
    from segret_jax.report.gather import gather
    from segret_jax.report.page import run_page, side_by_side

    runs = [gather(folder) for folder in args.runs]
    several = len(runs) > 1
    out = args.out or (Path(SIDE_BY_SIDE) if several else runs[0].folder / REPORT)
    page.check_replaceable(out)
    page.write(out, side_by_side(runs) if several else run_page(runs[0]))
    for note in (note for run in runs for note in run.notes):
        print(note)
    print(f"written to {out}: open it in a browser")
