"""Log a run's numbers and pictures to Weights & Biases, without ever ending the run."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segret_jax.errors import InputError
from segret_jax.files import atomic_write


class WandbLogger:
    """Log to one W&B run per workdir: a resumed run finds its id in the file `wandb_id`.

    A failure is reported once by `log`, and training continues without W&B. W&B rejects records of
    steps that a killed run had already sent; they are equal anyway.

    Raises:
        InputError: The package cannot be imported, which is known before the first step.
    """

    def __init__(
        self, project: str, workdir: Path, *, config: dict[str, Any], log: Callable[[str], None]
    ):
        try:
            # Not `import wandb`: that also finds a folder of this name, such as W&B itself writes.
            from wandb import Image, init
        except ImportError as error:
            raise InputError(
                f"cannot log to the W&B project {project!r}: {error}; pip install wandb"
            ) from error
        self._log, self._image = log, Image
        self._run: Any = None

        def start() -> None:
            file = workdir / "wandb_id"
            if not file.exists():
                atomic_write(file, secrets.token_hex(4))
            self._run = init(
                project=project, dir=str(workdir), name=workdir.name, resume="allow",
                id=file.read_text(encoding="utf-8").strip(), config=config,
            )  # fmt: skip

        self._attempt(start)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Log scalars."""
        if self._run is not None:
            self._attempt(lambda: self._run.log(values, step=step))

    def picture(self, step: int, file: Path) -> None:
        """Log a picture file."""
        self.log(step, {"validation/picture": self._image(str(file))})

    def finish(self, *, failed: bool) -> None:
        """Send what is left."""
        if self._run is not None:
            self._attempt(lambda: self._run.finish(exit_code=int(failed)))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of any kind: none is worth ending the run
            self._run = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self._log(f"W&B: {reason}; training continues without it")
