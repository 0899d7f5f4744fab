"""SegRet and SegMAN in JAX.

`segret_jax.load(path)` gives a model with its weights; see `segret_jax.api`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segret_jax.api import Model

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(source: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> "Model":
    """Load a model with its weights.

    Args:
        source: The folder of a checkpoint (of training or of converted weights), of a run (its
            best checkpoint) or of a saved model; hf://OWNER/NAME or hf://OWNER/NAME@REVISION, a
            saved model on the Hugging Face Hub (extra `hub`); or the name of weights that ship with
            the package; None: the weights that `segret predict` takes without --checkpoint.
        overrides: Settings to change, by key, as on the command line: {"eval.flip": True}.

    Raises:
        errors.InputError: There is no such model, it is damaged, or a setting is unknown or has an
            impossible value.
    """
    from segret_jax import api  # here, so that `import segret_jax` does not wait for JAX

    return api.load(source, overrides or {})
