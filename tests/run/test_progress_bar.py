"""The progress bar of a run: its width, its estimate of the time left, and its titles."""

import io
import sys
import time
from types import SimpleNamespace

import pytest
from tqdm import std, tqdm

from segret_jax.run import logger as loggers
from segret_jax.run.logger import RunLogger

LONGEST = {"loss": 12.3456, "accuracy": 99.9, "learning_rate": 1.2e-5, "skipped_samples": 0}
EXPECTED = "first time here, usually 0:30 to 2:00"


class Terminal(io.StringIO):
    """Keeps what is written to it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the logger and its bar see."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(loggers.time, "perf_counter", lambda: clock.seconds)
    monkeypatch.setattr(std, "time", lambda: clock.seconds)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns; a test sets it, for pytest sets its own after fixtures."""
    screen = Terminal()
    monkeypatch.setattr(std, "_screen_shape_wrapper", lambda: lambda _: (80, 24))
    return screen


def bar_text(logger: RunLogger) -> str:
    return str(logger._bar)


@pytest.mark.parametrize("skipped", [0, 1234])
def test_the_longest_values_fit_80_columns(tmp_path, now, terminal, skipped):
    with RunLogger(tmp_path, steps=160_000, start=150_000, images_per_step=234) as logger:
        logger.advance()
        for step in range(150_002, 150_013):
            now.seconds += 99.0
            logger.advance()
            logger.record_training(step, LONGEST | {"skipped_samples": skipped})
        text = tqdm.format_meter(**logger._bar.format_dict | {"ncols": None})
    fixed = text.replace(text.split("|")[1], "")  # the bar itself takes what is left
    assert len(fixed) < 80
    assert "images/s" in fixed
    assert ("1234 skipped" in fixed) == bool(skipped)


def test_the_time_left_leaves_compilation_and_evaluation_out(tmp_path, now, terminal):
    with RunLogger(tmp_path, steps=101, start=0) as logger:
        now.seconds += 300.0  # compilation
        logger.advance()
        for _ in range(2):
            now.seconds += 2.0
            logger.advance()
        assert logger._bar.n == 3
        assert "03:16 left" in bar_text(logger)
        with logger.evaluating():
            now.seconds += 600.0
        now.seconds += 2.0
        logger.advance()
        assert "03:14 left" in bar_text(logger)


def test_after_ten_steps_a_line_says_the_time_left(tmp_path, now, terminal, capsys):
    with RunLogger(tmp_path, steps=61, start=0, images_per_step=8) as logger:
        now.seconds += 300.0
        logger.advance()
        for _ in range(9):
            now.seconds += 2.0
            logger.advance()
        with logger.evaluating():
            now.seconds += 600.0
        assert "left" not in capsys.readouterr().out
        for _ in range(5):
            now.seconds += 2.0
            logger.advance()
    said = capsys.readouterr().out
    assert said.count("left") == 1
    assert "50 steps left: about 01:40 on this machine (4 images/s)" in said


def test_compilation_shows_a_clock_that_moves(tmp_path, terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal)
    with RunLogger(tmp_path, steps=160_000, start=0) as logger, logger.compiling(EXPECTED):
        assert terminal.getvalue().lstrip().startswith("starting |")
        assert f"compiling 0:00 ({EXPECTED}) |" in terminal.getvalue()
        time.sleep(1.3)
    assert "compiling 0:01 (first time" in terminal.getvalue()
    assert all(len(line) <= 80 for line in terminal.getvalue().splitlines())


def test_in_a_log_file_compilation_is_one_line(tmp_path, capsys):
    with RunLogger(tmp_path, steps=10, start=0) as logger, logger.compiling(EXPECTED):
        time.sleep(1.1)
    assert capsys.readouterr().err.count("compiling") <= 2  # that line, and the bar's last state


def test_the_evaluation_of_a_finished_run_is_not_called_compiling(tmp_path, terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal)
    with RunLogger(tmp_path, steps=10, start=10) as logger, logger.evaluating():
        assert bar_text(logger).startswith("evaluating ")
    assert "compiling" not in terminal.getvalue()
