"""The command line shared by train.py, eval.py and predict.py.

A config is a Python file with `get_config()`; single settings are changed with
`--config.GROUP.KEY=VALUE`. What the user can mend is told in one line, without a traceback.
"""

import argparse
import ast
import difflib
import logging
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segret_jax import environment, interrupts, streams
from segret_jax.config import ANY_LENGTH, Config, flatten, set_value, validate
from segret_jax.errors import InputError, unknown_name

OVERRIDE = "--config."
FAULT = 70  # exit status, as in sysexits.h


class Parser(argparse.ArgumentParser):
    """An argument parser that leaves `--config.GROUP.KEY=VALUE` to `apply_overrides`."""

    def __init__(self, description: str):
        super().__init__(
            prog=_program(),
            description=description,
            epilog="--config.GROUP.KEY=VALUE changes a setting; see segret_jax/config.py",
            allow_abbrev=False,
        )

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the arguments and the overrides, as given."""
        overrides = [arg for arg in argv if arg.startswith(OVERRIDE)]
        for override in overrides:
            if "=" not in override:
                raise InputError(f"{override} has no value: write {override}=VALUE")
        return self.parse_args([arg for arg in argv if arg not in overrides]), overrides

    def error(self, message: str) -> Any:
        """Report a wrong argument as every other mistake: one line, exit status 2."""
        raise InputError(f"{message} (--help lists what there is)")


def _program() -> str | None:
    """Return how a module is run; argparse would say `__main__.py` of a package."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the arguments; print the user's errors alone and exit with status 2.

    Ctrl-C ends with one line and status 130.
    """
    streams.make_safe()
    with interrupts.raised_once() as interrupted:
        try:
            environment.drop_unsafe_settings()
            _use_huge_pages()
            logging.basicConfig(format="%(message)s", level=logging.WARNING)
            main(sys.argv[1:])
        except (Exception, KeyboardInterrupt) as error:
            if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
                interrupts.quit_at_once(_say_interrupted)  # Python's own end may take long
            if isinstance(error, InputError | OSError):  # such as a full disk
                print(f"error: {error}", file=sys.stderr)
                _exit(2)
            traceback.print_exc()
            _exit(FAULT)  # a fault of the program: 1 is a verdict of check, verify, compare


def _say_interrupted() -> None:
    print("interrupted", file=sys.stderr)
    sys.stdout.flush()


def _exit(status: int) -> None:
    """End with `status`; one of several processes at once, since the others do not come along."""
    if "segret_jax.processes" in sys.modules:
        sys.modules["segret_jax.processes"].leave(status)
    sys.exit(status)


def _use_huge_pages() -> None:
    """Start the program again with glibc's huge pages on, unless the user tuned glibc.

    XLA on CPU takes its buffers from malloc and gives them back at every step; with 4 KiB pages
    the faults cost a third to a half of the time. glibc reads the setting only at start-up.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def load_config_file(path: str) -> Config:
    """Run a config file and return what its `get_config()` gives."""
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(str(file), map(str, _known_configs(file)), n=1, cutoff=0.4)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"there is no config file {path}{guess}")
    namespace = runpy.run_path(str(file))
    if "get_config" not in namespace:
        raise InputError(f"{path} has no get_config(): a config file defines it (see configs/)")
    try:
        config = namespace["get_config"]()
    except AttributeError as error:
        misspelt = re.match(r"'(\w+)Config' object has no attribute '(\w+)'", str(error))
        if not misspelt:
            raise
        key = f"{misspelt[1].lower()}.{misspelt[2]}"
        raise _unknown_key(key, flatten(Config())) from error
    if not isinstance(config, Config):
        raise InputError(f"get_config() of {path} returns {type(config).__name__}, not a Config")
    return config


def _unknown_key(key: str, settings: dict[str, Any]) -> InputError:
    """Return the error that names the nearest key, else the keys of its group, else the groups."""
    group = key.partition(".")[0]
    known = [name for name in settings if name.startswith(f"{group}.")]
    if difflib.get_close_matches(key, settings, n=1):
        known = list(settings)
    return unknown_name("config key", key, known or {name.split(".")[0] for name in settings})


def _known_configs(file: Path) -> list[Path]:
    return sorted({*file.parent.glob("*.py"), *Path("configs").glob("*.py")})


def apply_overrides(config: Config, overrides: list[str]) -> Config:
    """Set each `--config.GROUP.KEY=VALUE` in `config`, then validate the whole."""
    settings = flatten(config)
    for override in overrides:
        key, _, text = override.removeprefix(OVERRIDE).partition("=")
        if key not in settings:
            raise _unknown_key(key, settings)
        value = _parse(text, settings[key])
        if key in ANY_LENGTH and isinstance(value, int | float):
            value = (value,)
        set_value(config, key, value)
    return validate(config)


def _parse(text: str, default: Any) -> Any:
    """Read `text` as a value of the type of `default`; `validate` refuses what is not."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if isinstance(default, bool) else text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, list) else value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    return value
