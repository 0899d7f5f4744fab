"""Printing ends no program: an encoding without the letters, a reader that has gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segret_jax.run import streams

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from segret_jax.cli import program
def main(argv):
    for _ in range(20000):
        print("mIoU 82.2 \\u00d7 \\u9053\\u8def")
    open(argv[0], "w").write("the end")
program.run(main)
"""


def start(tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = os.environ | {"GLIBC_TUNABLES": "", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "result")], env=inherited,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip


def test_closed_pipe_does_not_end_the_program(tmp_path):
    with start(tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    assert (tmp_path / "result").read_text(encoding="utf-8") == "the end"


def test_characters_missing_in_the_encoding_are_escaped(tmp_path):
    with start(tmp_path, PYTHONIOENCODING="ascii") as process:
        printed, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert printed.splitlines()[0] == r"mIoU 82.2 \xd7 \u9053\u8def"


def test_a_program_without_a_standard_output_runs(monkeypatch):
    """As pythonw and some services start it."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    streams.make_safe()
    print("nobody reads this", flush=True)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_other_attributes_reach_the_stream(monkeypatch, name):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    expected = getattr(sys, name).isatty()
    streams.make_safe()
    assert getattr(sys, name).isatty() == expected
