"""Find the layer in which a training step stopped being finite.

  segret replay runs/NAME/nonfinite_000123

Training that stops for a loss or gradient that is not finite leaves such a folder. The step is
made again from it on one device, in float32 and in bfloat16, and the first tensors that are not
finite are named: the layer, the operation, the line. The last is the first with a nan; infinite
ones before it may be its cause, or do no harm. --config.KEY=VALUE changes a setting, to see whether
it would help. Exits with 0 if the step is finite in both, with 1 if not.
"""

import sys
from pathlib import Path

from segret_jax.cli import arguments as cli
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Run the step again that `argv` names."""
    parser = cli.Parser("replay", __doc__)
    parser.add_argument("folder", type=cli.existing, help="nonfinite_STEP, or a run's folder")
    args, overrides = parser.parse(argv)
    folder = _find(args.folder)

    from segret_jax.replay.step import PRECISIONS, nonfinite_inputs, replay
    from segret_jax.training import capture

    captured = capture.load(folder)
    config = cli.apply_overrides(captured.config, overrides)
    print(f"step {int(captured.state.step) + 1}, batch of {len(captured.batch['index'])} images")
    for line in nonfinite_inputs(captured):
        print(f"not finite before the step: {line}")
    finite = [replay(captured, config, dtype) for dtype in PRECISIONS]
    if all(finite) and not overrides:
        print("The step is finite here: other devices or versions of JAX round another way")
    sys.exit(0 if all(finite) else 1)


def _find(folder: Path) -> Path:
    """Return `folder` if it holds a captured step, or the newest such folder in it."""
    if (folder / "state").is_dir():
        return folder
    if found := sorted(folder.glob("nonfinite_*")):
        return found[-1]
    raise InputError(f"{folder} has no folder nonfinite_STEP: give one that training left")
