"""Weights & Biases, if asked for: the logger's numbers and pictures, never at training's cost."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segret_jax.errors import InputError
from segret_jax.files import atomic_write


class WandbLogger:
    """One run there per workdir: its id is kept in `wandb_id`, so that a resumed run continues it.

    Whatever fails, `say` tells it once, and training goes on without. Only a missing package
    raises, InputError: that is known before the first step. Records of steps that a killed run had
    already sent are not taken twice: W&B refuses steps that go back, and they are equal anyway.
    """

    def __init__(
        self, project: str, workdir: Path, *, config: dict[str, Any], say: Callable[[str], None]
    ):
        self._say = say
        self._run: Any = None
        with self._going_on():
            self._image, init = _package(project)
            self._run = init(
                project=project, dir=str(workdir), name=workdir.name, id=_id_of(workdir),
                resume="allow", config=config,
            )  # fmt: skip

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars."""
        if self._run is not None:
            with self._going_on():
                self._run.log(values, step=step)

    def picture(self, step: int, file: Path) -> None:
        """Log a picture file."""
        if self._run is not None:
            with self._going_on():
                self._run.log({"validation/picture": self._image(str(file))}, step=step)

    def finish(self, *, failed: bool) -> None:
        """Send what is left."""
        if self._run is not None:
            with self._going_on():
                self._run.finish(exit_code=int(failed))

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # anything: theirs are many, and none is worth a run
            self._run = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self._say(f"W&B: {reason}; training goes on without it")


def _package(project: str) -> tuple[Any, Any]:
    try:
        # Not `import wandb`: that also finds a folder of this name, such as W&B itself writes.
        from wandb import Image, init
    except ImportError as error:
        raise InputError(
            f"cannot log to the W&B project {project!r}: {error}; pip install wandb"
        ) from error
    return Image, init


def _id_of(workdir: Path) -> str:
    file = workdir / "wandb_id"
    if not file.exists():
        atomic_write(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8").strip()
