"""The command `segret`: what it offers, how fast it answers, and what it does without data."""

import contextlib
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segret_jax import __version__
from segret_jax.cli import data, main
from segret_jax.errors import InputError

FILE, FOLDER = __file__, str(Path(__file__).parent)
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
        "aot", "replay", "report", "serve",
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


def answers_within(seconds: float, *argv: str) -> bool:
    """Whether the median of five starts, each a process of its own, is below `seconds`."""

    def once() -> float:
        begun = time.perf_counter()
        command = [sys.executable, "-m", "segret_jax", *argv]
        subprocess.run(command, capture_output=True, check=False)
        return time.perf_counter() - begun

    starts = (once() < seconds for _ in range(5))
    return sum(itertools.islice((fast for fast in starts if fast), 3)) == 3  # stops at the third


@pytest.mark.parametrize("command", ["", *MODULES])
def test_help_takes_less_than_three_tenths_of_a_second(command):
    assert answers_within(0.3, *command.split(), "--help")


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
        ["train", "--config", "ade_tiny", "--config.data.dataset=ad20k"],
        ["train", "--config", "own"],
        ["aot", "--config", "ade_tiny", "--topology", "v5"],
        ["predict", FILE, "--checkpoint", "nope", "--out", "x"],
        ["eval", "--workdir", FOLDER],
        ["replay", FOLDER],
        ["verify", FILE],
        ["compare", FILE, FILE],
        ["data", "check", FOLDER, "--dataset", "nope"],
        ["data", "prepare", "nope", "--source", FOLDER, "--data_dir", "x"],
        ["data", "verify", "gs://x"],
        ["convert", FILE, "a.onnx"],
    ],
)
def test_wrong_arguments_take_less_than_half_a_second(argv):
    assert answers_within(0.5, *argv)
