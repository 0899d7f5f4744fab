"""The folders of models: checkpoints, by their scores, and saved models. Free of JAX: it checks
arguments."""

import json
import math
from pathlib import Path
from typing import Any

from segret_jax.checkpoint import hub
from segret_jax.errors import InputError
from segret_jax.files import read_json_object

FOLDER = "checkpoints"
METRICS = Path("metrics", "metrics")  # where Orbax writes a checkpoint's scores
LIBRARY, CONFIG, WEIGHTS = "segret_jax", "config.json", "model.safetensors"  # of a saved model
SHIPPED = Path(__file__).parents[1] / "weights"
RETRY = "save or download the model again"
GIVE_FOLDER = "the folder of a run, of a checkpoint or of a saved model, or hf://OWNER/NAME"
GIVE = f"{GIVE_FOLDER}, or the name of weights that ship with {LIBRARY}"


def find(source: str | Path) -> Path:
    """Return the folder of the model meant by `source`: a checkpoint, or a saved model.

    Args:
        source: A checkpoint or a saved model (`checkpoint.pretrained`); a run's folder or the
            folder `checkpoints` in it, of which the best checkpoint is taken; hf://OWNER/NAME or
            hf://OWNER/NAME@REVISION, a saved model on the Hugging Face Hub, which is downloaded
            to its cache; or the name of weights that ship with the package.

    Raises:
        InputError: There is none.
    """
    if str(source).startswith(hub.SCHEME):
        return _downloaded(str(source))
    path = Path(source).expanduser()
    if not path.exists():
        ships = shipped()
        if str(source) in ships:
            return ships[str(source)]
        raise InputError(
            f"{source} does not exist; give {GIVE} ({', '.join(ships) or 'there are none yet'})"
        )
    if (path / "model").is_dir() or is_saved_model(path):
        return path
    if path.is_file() or (path / WEIGHTS).is_file():
        kind = "a file" if path.is_file() else "a folder of PyTorch weights"
        raise InputError(
            f"{path} is {kind}, not a checkpoint's folder; PyTorch weights are converted first: "
            f"segret convert {path} {path.with_suffix('') if path.is_file() else 'NEW_FOLDER'}"
        )
    if saved := saved_in(path) or [one for one in _numbered(path) if (one / "model").is_dir()]:
        return max(saved, key=lambda p: (saved_mean_iou(p), int(p.name)))
    remedy = "train first, give another folder, or convert PyTorch weights (segret convert)"
    raise InputError(f"no checkpoint in {path.absolute()}: {remedy}")


def is_saved_model(folder: Path) -> bool:
    """Return whether a folder is one of `checkpoint.pretrained`; InputError for a damaged one."""
    if not ((folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()):
        return False
    return read_json_object(folder / CONFIG, RETRY).get("library_name") == LIBRARY


def shipped() -> dict[str, Path]:
    """Return the saved models that come with the package, by name."""
    return {folder.name: folder for folder in sorted(SHIPPED.glob("*")) if is_saved_model(folder)}


def default_model() -> str:
    """Return the name of the weights to use where none are given: the first that ship."""
    if names := list(shipped()):
        return names[0]
    raise InputError(
        f"no weights ship with this version: give --checkpoint, which is {GIVE_FOLDER}; "
        "`segret demo` trains a model in minutes"
    )


def _downloaded(source: str) -> Path:
    folder = hub.download(source, (CONFIG, WEIGHTS))
    if not is_saved_model(folder):
        raise InputError(
            f"{source} holds no model of {LIBRARY} ({CONFIG} and {WEIGHTS} of save_pretrained); "
            "PyTorch weights are downloaded and converted first (segret convert)"
        )
    return folder


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
