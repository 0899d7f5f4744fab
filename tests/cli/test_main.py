"""The command `segret`: what it offers, how fast it answers, and what it does without data."""

import contextlib
import re
import statistics
import subprocess
import sys
import time

import pytest

from segret_jax import __version__
from segret_jax.cli import data, main
from segret_jax.errors import InputError

MODULES = [*main.COMMANDS, *(f"data {name}" for name in data.COMMANDS)]


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with contextlib.suppress(SystemExit):
        main.main(list(argv))
    return capsys.readouterr().out


def test_help_names_every_command_by_task_and_fits_one_screen(capsys):
    lines = printed(capsys, "--help").splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    commands = re.findall(r"^  (\w+)  +\S", "\n".join(lines), re.MULTILINE)
    assert set(commands) == {
        "demo", "train", "eval", "predict", "convert", "verify", "data", "compare", "summary",
        "aot", "replay",
    }  # fmt: skip


def test_without_arguments_it_shows_what_to_try_first(capsys):
    text = printed(capsys)
    assert "segret demo" in text
    assert "segret --help" in text
    assert printed(capsys, "--version") == f"segret_jax {__version__}\n"


@pytest.mark.parametrize("command", MODULES)
def test_the_help_of_a_command_names_it(command, capsys):
    text = printed(capsys, *command.split(), "--help")
    assert f"segret {command}" in text


def test_a_misspelled_command_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'train'"):
        main.main(["trian"])
    with pytest.raises(InputError, match="did you mean 'prepare'"):
        main.main(["data", "prepair"])


def seconds(*argv: str) -> float:
    """The median of five starts, each a process of its own."""

    def once() -> float:
        begun = time.perf_counter()
        command = [sys.executable, "-m", "segret_jax", *argv]
        subprocess.run(command, capture_output=True, check=False)
        return time.perf_counter() - begun

    return statistics.median(once() for _ in range(5))


@pytest.mark.parametrize("command", ["", *MODULES])
def test_help_takes_less_than_three_tenths_of_a_second(command):
    assert seconds(*command.split(), "--help") < 0.3


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--config", "deom"],
        ["train", "--config", "demo", "--config.train.stpes=1"],
        ["predict"],
        ["eval"],
        ["convert", "x"],
        ["summary", "--model", "x"],
        ["data", "check", "x"],
    ],
)
def test_wrong_arguments_take_less_than_half_a_second(argv):
    assert seconds(*argv) < 0.5
