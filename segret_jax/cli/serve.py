"""Open a page on this machine that segments photographs, and an HTTP interface beside it.

  segret serve
  segret serve runs/camvid_tiny_cpu --port 8080

Open the address that it prints. POST /predict segments the file in the body; /docs describes it.
Ctrl-C ends it.
"""

import importlib.util
from pathlib import Path

from segret_jax.checkpoint.folders import default_model, find
from segret_jax.cli import arguments as cli
from segret_jax.config import check_segmentation
from segret_jax.errors import InputError
from segret_jax.serve.limits import MOST_PIXELS, Limits

REMEDY = "the page needs Starlette and uvicorn: pip install starlette uvicorn"
HOST_HELP = (
    "the address to serve at; default: %(default)s, which only this machine reaches; 0.0.0.0 lets "
    "everyone in who reaches this machine (docs/evaluation.md)"
)
NAME_HELP = "a further name by which the server may be called, such as that of a proxy"
LIMITS = {
    "--queue": ("queue", "photographs waiting at one time"),
    "--per-client": ("per_client", "those of one client"),
    "--max-bytes": ("max_bytes", "of a file"),
    "--max-pixels": ("max_pixels", f"of a photograph, up to {MOST_PIXELS:,}"),
}


def main(argv: list[str]) -> None:
    """Serve the model that `argv` names."""
    parser = cli.Parser("serve", __doc__)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"{cli.MODEL_HELP}; default: those that ship"
    )
    parser.add_argument("--host", default="127.0.0.1", help=HOST_HELP)
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: any")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=NAME_HELP)
    for option, (name, text) in LIMITS.items():
        text = f"{text}; default: {getattr(Limits(), name):,}"
        parser.add_argument(
            option, type=int, default=getattr(Limits(), name), metavar="N", help=text
        )
    args, overrides = parser.parse(argv)
    for option, (name, _) in LIMITS.items():
        if (value := getattr(args, name)) < 1:
            raise InputError(f"{option} is {value}; the least is 1")
    if args.max_pixels > MOST_PIXELS:
        raise InputError(f"--max-pixels is {args.max_pixels}; the most is {MOST_PIXELS}")
    if not all(map(importlib.util.find_spec, ("starlette", "uvicorn"))):
        raise InputError(REMEDY)
    limits = Limits(**{name: getattr(args, name) for name, _ in LIMITS.values()})
    name = args.model or default_model()
    checkpoint = find(name)

    from segret_jax.serve import server, uploads
    from segret_jax.serve.app import Served, create_app

    listening = server.listen(args.host, args.port)  # before the model, which takes a while
    cli.begin()

    from segret_jax.checkpoint import model as checkpoints
    from segret_jax.evaluation.inference import Predictor
    from segret_jax.serve.segmenter import Segmenter

    config = cli.apply_overrides(checkpoints.load_config(checkpoint), overrides)
    check_segmentation(config.model)
    config.eval.batch_size = 1  # photographs come one by one
    table = checkpoints.load_table(checkpoint)
    bundle = checkpoints.load_model(checkpoint, config)
    segmenter = Segmenter(Predictor.from_config(bundle, config, stored=True), table)
    print(f"{name}: {table.summary}", flush=True)
    segmenter.warm(lambda line: print(line, flush=True))

    hosts = {*server.LOCAL_NAMES, args.host, *args.allow_host}
    everyone = not server.is_loopback(args.host) and not args.allow_host
    uploads.refuse_bombs()
    served = Served(name=Path(name).name, classes=table, segment=segmenter)
    app = create_app(served, limits, hosts=None if everyone else {h.lower() for h in hosts})
    print(f"open {server.address(listening)} in a browser; Ctrl-C ends it", flush=True)
    server.run(app, listening)
