"""What a run was started with: the command, the recipe, the machine and the versions."""

import datetime
import json
import platform
import shlex
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from segret_jax import __version__
from segret_jax.files import atomic_write
from segret_jax.run.memory import host_memory

DESCRIPTION = "run.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


class Recipe(NamedTuple):
    """A config as its file gives it, before settings of the command line."""

    name: str
    settings: dict[str, Any]


def describe(recipe: Recipe | None = None) -> dict[str, Any]:
    """Return the description of this process, as plain values for JSON."""
    devices, count = jax.devices(), jax.process_count()
    described: dict[str, Any] = {
        "command": shlex.join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": {
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "processes": count,
            "host memory": f"{host_memory().total / 1e9:.0f} GB",
            "system": platform.platform(),
            "Python": platform.python_version(),
            "segret_jax": __version__,
            **{name: metadata.version(name) for name in PACKAGES},
        },
    }
    if recipe:
        described |= {"recipe": recipe.name, "recipe_settings": recipe.settings}
    return described


def _program(file: Path) -> str:
    """Return the name of the command; as a module, Python runs a file __main__.py."""
    return "segret" if file.name == "__main__.py" else file.name


def try_write(folder: Path, recipe: Recipe | None = None) -> None:
    """Write run.json into `folder`; a fault is passed over, for no report is worth a training."""
    with suppress(Exception):
        atomic_write(folder / DESCRIPTION, json.dumps(describe(recipe), indent=2) + "\n")
