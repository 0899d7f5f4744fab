"""The checkpoints in a folder, by their paths and scores. Free of JAX: it checks arguments."""

import json
import math
from pathlib import Path
from typing import Any

from segret_jax.errors import InputError

FOLDER = "checkpoints"
METRICS = Path("metrics", "metrics")  # where Orbax writes a checkpoint's scores


def find(path: Path) -> Path:
    """Return the checkpoint meant by `path`.

    Args:
        path: A checkpoint itself, or a run's folder or the folder `checkpoints` in it: of these
            the best one is taken.

    Raises:
        InputError: There is none.
    """
    if (path / "model").is_dir():
        return path
    if path.is_file():
        raise InputError(
            f"{path} is a file, not a checkpoint's folder; PyTorch weights are converted first: "
            f"segret convert {path} {path.with_suffix('')}"
        )
    if saved := saved_in(path) or [one for one in _numbered(path) if (one / "model").is_dir()]:
        return max(saved, key=lambda p: (saved_mean_iou(p), int(p.name)))
    remedy = "train first, give another folder, or convert PyTorch weights (segret convert)"
    raise InputError(f"no checkpoint in {path.absolute()}: {remedy}")


def saved_in(workdir: Path) -> list[Path]:
    """Return the checkpoints of a run's folder."""
    return _numbered(workdir / FOLDER)


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.name.isdigit()]


def saved_mean_iou(checkpoint: Path) -> float:
    """Return the score saved with a checkpoint; −1, worse than any, without one to read."""
    try:
        return mean_iou_of(json.loads((checkpoint / METRICS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return -1.0


def mean_iou_of(metrics: Any) -> float:
    """Return the score of what Orbax keeps with a checkpoint; −1, worse than any, without one."""
    score = (metrics or {}).get("mIoU", -1.0)
    return -1.0 if math.isnan(score) else score
