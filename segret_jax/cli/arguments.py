"""Arguments of the subcommands, and the settings among them.

A config is a Python file with `get_config()`; single settings are changed with
`--config.GROUP.KEY=VALUE`.
"""

import argparse
import re
import runpy
from pathlib import Path
from typing import Any

from segret_jax.config import Config, choose_family, flatten, override, unknown_key
from segret_jax.errors import InputError, unknown_name
from segret_jax.files import atomic_write, disk_errors_as_input_errors, make_folder
from segret_jax.models.families import FAMILIES

OVERRIDE = "--config."
PROCESSES_HELP = "auto, or INDEX/COUNT@HOST:PORT of process 0"
MODEL_HELP = (
    "a run's folder (its best checkpoint), a checkpoint, a saved model's folder, "
    "hf://OWNER/NAME[@REVISION], or the name of weights that ship with segret_jax"
)
SETTINGS_HELP = "--config.GROUP.KEY=VALUE changes a setting (segret_jax/config.py)"


class Parser(argparse.ArgumentParser):
    """An argument parser that leaves `--config.GROUP.KEY=VALUE` to `apply_overrides`."""

    def __init__(self, command: str, description: str | None, *, has_settings: bool = True):
        super().__init__(
            prog=f"segret {command}",
            description=description,
            epilog=SETTINGS_HELP if has_settings else None,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the arguments, and the overrides as given."""
        overrides = [arg for arg in argv if arg.startswith(OVERRIDE)]
        for one in overrides:
            if "=" not in one:
                raise InputError(f"{one} has no value: write {one}=VALUE")
        rest = [arg for arg in argv if arg not in overrides]
        return self.parse_intermixed_args(rest), overrides  # inputs may follow options

    def error(self, message: str) -> Any:
        """Report a wrong argument as every other mistake: one line, exit status 2."""
        raise InputError(f"{message} (see --help)")


def check_folder(option: str, folder: Path) -> None:
    """Create the folder of an output; raise InputError, before any work, if it is not writable."""
    for path in (folder, *folder.parents):
        if path.is_file():
            raise InputError(f"cannot write {option}: {path} is a file; choose another folder")
    with disk_errors_as_input_errors(option):
        make_folder(folder)


def existing(text: str) -> Path:
    """Return the path of an input, the type of such an argument; it must exist."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return Path(text)


def whole_number(option: str, text: str, unit: str) -> int:
    """Return the number that an option gives; raise InputError unless it is whole and positive."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise InputError(f"{option} {text}: must be a whole number of {unit}, 1 or more")
    return value


def write_output(option: str, file: Path, text: str) -> None:
    """Write a text file; raise InputError if the disk refuses it."""
    with disk_errors_as_input_errors(option):
        atomic_write(file, text)


def begin(processes_spec: str | None = None) -> None:
    """Prepare JAX for a command that computes, once its arguments are checked.

    Joins the other processes that --processes names, and turns on the compilation cache.
    """
    from segret_jax.parallel import processes
    from segret_jax.run import compilation

    processes.start(processes_spec)
    compilation.use_cache()


def shipped_configs() -> dict[str, Path]:
    """Return the configs that come with the project, by name."""
    package = Path(__file__).parents[1]  # installed it holds them, in a checkout they lie beside it
    folder = next(filter(Path.is_dir, (package / "configs", package.parent / "configs")), package)
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def load_config_file(name: str) -> Config:
    """Run a config file, given by its path or a shipped one's name; return its `get_config()`."""
    known = shipped_configs()
    file = Path(name) if name.endswith(".py") else known.get(name, Path(name))
    if not file.is_file():
        there = map(str, file.parent.glob("*.py")) if file.suffix == ".py" else known
        raise unknown_name("config file" if file.suffix == ".py" else "config", name, there)
    namespace = runpy.run_path(str(file))
    if "get_config" not in namespace:
        raise InputError(f"{name} has no get_config(): a config file defines it")
    try:
        config = namespace["get_config"]()
    except AttributeError as error:
        found = re.match(r"'(\w*)(Config|Settings)' object has no attribute '(\w+)'", str(error))
        if found is None:
            raise
        group = "model.settings" if found[2] == "Settings" else found[1].lower()
        config = Config()
        for family in (n for n, f in FAMILIES.items() if f.settings.__name__ in str(error)):
            choose_family(config.model, family)
        raise unknown_key(f"{group}.{found[3]}".strip("."), flatten(config)) from error
    if not isinstance(config, Config):
        raise InputError(f"get_config() of {name} returns {type(config).__name__}, not a Config")
    return config


def apply_overrides(config: Config, overrides: list[str]) -> Config:
    """Set each `--config.GROUP.KEY=VALUE` in `config`, then validate the whole."""
    pairs = (one.removeprefix(OVERRIDE).partition("=") for one in overrides)
    return override(config, {key: text for key, _, text in pairs})
