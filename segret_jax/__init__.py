"""SegRet and SegMAN in JAX.

`segret_jax.load(path)` gives a model with its weights; see `segret_jax.api`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segret_jax.api import Model

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(path: str | Path) -> "Model":
    """Load the model of a checkpoint, or of a run's folder: its best one.

    The checkpoint is one of a training run or of converted weights. Raises `errors.InputError` if
    there is none or it is damaged.
    """
    from segret_jax import api  # here, so that `import segret_jax` does not wait for JAX

    return api.load(Path(path).expanduser())
