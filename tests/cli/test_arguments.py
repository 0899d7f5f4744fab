"""The command line: every setting from text, and one line for each mistake."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segret_jax.cli import arguments as cli
from segret_jax.cli import convert as convert_cli
from segret_jax.cli import eval as eval_cli
from segret_jax.cli import main, program
from segret_jax.cli import predict as predict_cli
from segret_jax.cli import train as train_cli
from segret_jax.config import Config, flatten
from segret_jax.convert import exporting
from segret_jax.errors import InputError
from segret_jax.models.families import FAMILIES
from segret_jax.settings import setting

ROOT = Path(__file__).parents[2]


def message_of(call, *args) -> str:
    """The message of the InputError that a call must raise: one line, or three without data."""
    with pytest.raises(InputError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message or message.endswith("; `segret demo` needs no data")
    assert message.count("\n") <= 2
    return message


def overridden(*overrides: str) -> dict:
    return flatten(cli.apply_overrides(Config(), [f"--config.{o}" for o in overrides]))


def refused(*overrides: str) -> str:
    return message_of(overridden, *overrides)


# Values


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=100", 100),
        ("train.steps=160_000", 160_000),
        ("optim.learning_rate=3e-4", 3e-4),
        ("optim.learning_rate=1", 1.0),
        ("model.drop_path=-1", -1.0),
        ("model.settings.zero_branch=false", False),
        ("model.settings.zero_branch=False", False),
        ("model.settings.rotary=true", True),
        ("model.settings.rotary=TRUE", True),
        ("data.crop=240,180", (240, 180)),
        ("data.crop=(240,180)", (240, 180)),
        ("data.crop=[240, 180]", (240, 180)),
        ("data.resize_ratio=0.5,1", (0.5, 1)),
        ("model.variant=large", "large"),
        ("data.root=/data/a=b, c", "/data/a=b, c"),
        ("data.root=123", "123"),
        ("data.root=", ""),
    ],
)
def test_a_value_has_the_type_of_its_setting(override, value):
    settings = overridden(override)
    key = override.split("=")[0]
    assert settings[key] == value
    assert type(settings[key]) is type(value)
    assert settings | {key: None} == flatten(Config()) | {key: None}


def test_the_last_of_several_overrides_counts():
    settings = overridden("train.steps=1", "train.seed=5", "train.steps=2")
    assert (settings["train.steps"], settings["train.seed"]) == (2, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "unknown config key 'train.step': did you mean 'train.steps'?"),
        ("trian.batch_size=3", "unknown config key 'trian.batch_size': did you mean 'train.batch_"),
        ("model.rotary=true", "model.rotary belongs to the family: write --config.model.settings."),
        ("model.decay=x", "model.decay belongs to the family: write --config.model.settings.decay"),
        ("model.family=segmen", "unknown model.family 'segmen'"),
        ("train=3", "unknown config key 'train'"),
        ("train.steps.x=3", "unknown config key 'train.steps.x': did you mean 'train.steps'?"),
        ("=3", "unknown config key ''"),
        ("train.steps=many", "train.steps is 'many'; it takes a value of type int, such as 160000"),
        ("train.steps=", "train.steps is ''; it takes a value of type int"),
        ("train.steps=1.5", "train.steps is 1.5; it takes a value of type int"),
        ("train.steps=1e3", "train.steps is 1000.0; it takes a value of type int"),
        ("train.steps=True", "train.steps is True; it takes a value of type int"),
        ("train.steps=0", "train.steps is 0; it must be positive"),
        ("train.seed=-1", "train.seed is -1; it must be 0 or more"),
        ("optim.learning_rate=fast", "optim.learning_rate is 'fast'; it takes a finite number"),
        ("optim.learning_rate=0", "optim.learning_rate is 0.0; it must be positive"),
        ("model.settings.zero_branch=1", "model.settings.zero_branch is 1; it takes a value of"),
        ("model.settings.zero_branch=yes", "model.settings.zero_branch is 'yes'; it takes a value"),
        ("data.crop=256", "data.crop is 256; it takes 2 numbers, such as (512, 512)"),
        ("data.crop=1,2,3", "data.crop is (1, 2, 3); it takes 2 numbers"),
        ("data.crop=a,b", "data.crop is 'a,b'; it takes 2 numbers"),
        ("data.crop=2.5,3", "data.crop is (2.5, 3); it takes 2 numbers"),
        ("data.crop=True,3", "data.crop is (True, 3); it takes 2 numbers"),
        ("data.crop=0,64", "data.crop is (0, 64); it must be positive"),
        ("data.crop=64,-64", "data.crop is (64, -64); it must be positive"),
        ("eval.resize_target=512", "eval.resize_target is 512; it takes 2 numbers"),
        ("data.resize_ratio=2,1", "data.resize_ratio is (2, 1); give (smallest, largest)"),
        ("model.variant=tinny", "model.variant is 'tinny'; choose one of tiny, small, base, large"),
        ("model.dtype=float16", "model.dtype is 'float16'; choose one of float32, bfloat16"),
        ("data.on_error=ignore", "data.on_error is 'ignore'; choose one of stop, skip"),
        ("model.drop_path=1.0", "model.drop_path is 1.0; it must be below 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_remedy(override, message):
    assert refused(override).startswith(message)


# Config files


def test_a_config_file_from_anywhere(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from segret_jax.config import Config\n"
        "def get_config():\n    config = Config()\n    config.train.steps = 7\n    return config\n"
    )
    assert cli.load_config_file(str(file)).train.steps == 7


def test_a_missing_config_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for name, near in [("configs/deom.py", "configs/demo.py"), ("ade_tny", "ade_tiny")]:
        kind = "config file" if name.endswith(".py") else "config"
        message = message_of(cli.load_config_file, name)
        assert message == f"unknown {kind} {name!r}: did you mean {near!r}?"
    message = message_of(cli.load_config_file, "xyz")
    assert message.startswith("unknown config 'xyz'. Known: ade_base, ade_large, ")
    assert message_of(cli.load_config_file, "configs").startswith("unknown config 'configs'")
    (tmp_path / "mine.py").touch()
    message = message_of(cli.load_config_file, str(tmp_path / "mien.py"))
    assert f"did you mean '{tmp_path}/mine.py'?" in message
    message = message_of(cli.load_config_file, str(tmp_path / "nowhere" / "mine.py"))
    assert message == f"there is no config file {tmp_path}/nowhere/mine.py"


def test_a_shipped_config_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.load_config_file("ade_tiny").data.dataset == "ade20k"
    assert set(cli.shipped_configs()) == {file.stem for file in (ROOT / "configs").glob("*.py")}


def test_an_installed_package_reads_its_own_configs_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "segret_jax" / "cli" / "arguments.py"))
    foreign, own = tmp_path / "configs" / "demo.py", tmp_path / "segret_jax" / "configs" / "demo.py"
    foreign.parent.mkdir()
    foreign.touch()
    assert cli.shipped_configs() == {"demo": foreign}  # of a checkout
    own.parent.mkdir(parents=True)
    own.touch()
    assert cli.shipped_configs() == {"demo": own}


def test_the_endings_checked_before_the_imports_are_those_that_are_written():
    assert convert_cli.TORCH_ENDINGS == exporting.ENDINGS


def test_a_file_without_get_config_is_rejected(tmp_path: Path):
    file = tmp_path / "notes.py"
    file.write_text("x = 1\n")
    assert message_of(cli.load_config_file, str(file)) == (
        f"{file} has no get_config(): a config file defines it"
    )


def test_a_value_of_the_wrong_type_in_a_config_file():
    config = Config()
    config.train.steps = "many"
    assert message_of(cli.apply_overrides, config, []).startswith("train.steps is 'many'")


def test_a_config_file_is_validated_too():
    config = Config()
    config.data.crop = 256
    assert message_of(cli.apply_overrides, config, []).startswith("data.crop is 256; it takes 2")


# Arguments


def test_overrides_and_arguments_in_any_order():
    parser = cli.Parser("x", "")
    parser.add_argument("--config")
    parser.add_argument("--workdir", type=Path)
    args, overrides = parser.parse(
        ["--config.train.steps=3", "--workdir", "w", "--config=c.py", "--config.data.root=a b"]
    )
    assert (args.config, args.workdir) == ("c.py", Path("w"))
    assert overrides == ["--config.train.steps=3", "--config.data.root=a b"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --config NAME (ade_base, ade_large,"),
        (["--config"], "argument --config: expected one argument"),
        (["--config", "configs/demo.py", "--work", "w"], "unrecognized arguments: --work w"),
        (
            ["--config", "configs/demo.py", "--config.train.steps", "4"],
            "--config.train.steps has no value: write --config.train.steps=VALUE",
        ),
        (["--config", "configs/deom.py"], "unknown config file 'configs/deom.py': did you mean"),
        (["--config", "configs/demo.py", "--config.train.stps=4"], "unknown config key 'train.st"),
        (
            ["--config", "configs/ade_tiny.py", "--config.data.root=/nowhere"],
            "there is no folder /nowhere; ade20k needs images/training/**/*.jpg with ",
        ),
        (
            ["--config", "configs/demo.py", "--config.data.dataset=camvdi"],
            "unknown dataset 'camvdi': did you mean 'camvid'?",
        ),
        (
            ["--config", "configs/demo.py", "--config.train.batch_size=3"],
            "train.batch_size is 3, the batch of all 2 devices together: give a multiple of 2",
        ),
    ],
)
def test_train_names_what_is_wrong(argv, message, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    workdir = [] if len(argv) < 2 else ["--workdir", str(tmp_path / "run")]
    assert message_of(train_cli.main, [*argv, *workdir]).startswith(message)
    assert not (tmp_path / "run").exists()  # nothing is left behind


def test_synthetic_scenes_that_are_too_small_are_rejected(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    argv = ["--config", "configs/demo.py", "--workdir", str(tmp_path)]
    try:
        train_cli.main([*argv, "--config.data.synthetic_size=16,16"])
    except InputError as error:
        assert "synthetic_size" in str(error)  # noqa: PT017


def test_eval_names_what_is_wrong(tmp_path):
    assert message_of(eval_cli.main, []) == (
        "give --workdir or --checkpoint, or the --config of a run in runs/"
    )
    nowhere = str(tmp_path / "nowhere")
    message = message_of(eval_cli.main, ["--workdir", nowhere])
    assert message == f"argument --workdir: {nowhere} does not exist (see --help)"
    message = message_of(eval_cli.main, ["--checkpoint", nowhere])
    assert message.startswith(f"{nowhere} does not exist; give the folder of a run")


def test_predict_names_what_is_wrong(tmp_path):
    def message(source: Path) -> str:
        where = ["--checkpoint", str(run), "--out", str(tmp_path / "out")]
        return message_of(predict_cli.main, [str(source), *where])

    run = tmp_path / "run"
    assert message(tmp_path).startswith(f"{run} does not exist; give the folder of a run, of a ch")
    run.mkdir()
    assert message(tmp_path).startswith(
        f"no checkpoint in {run}: train first, give another folder, "
    )
    assert "segret convert" in message_of(
        predict_cli.main, ["a", "--checkpoint", __file__, "--out", "b"]
    )
    (run / "0" / "model").mkdir(parents=True)
    assert (
        message(tmp_path / "absent.jpg")
        == f"there is no picture, video or folder {tmp_path}/absent.jpg"
    )
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert message(folder).startswith(f"no images in {folder}; not read, as no image of a known")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "a.png")
    assert message(folder / "a.png").startswith(f"no config at {run / '0' / 'config'}")
    assert not (tmp_path / "out").exists()


# The program around them


@pytest.fixture(autouse=True)
def _handler_restored() -> Iterator[None]:
    """`cli.run` leaves Ctrl-C to the system, for the end of the process."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _ctrl_c_ends_the_tests():
    """As before: a program leaves it to the system when it ends."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def run_program(main, monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    program.run(main)


def test_an_input_error_is_one_line_and_status_2(monkeypatch, capsys):
    def main(argv: list[str]) -> None:
        raise InputError(f"{argv[0]} is wrong; give another")

    with pytest.raises(SystemExit) as exit:
        run_program(main, monkeypatch, "this")
    assert exit.value.code == 2
    assert capsys.readouterr() == ("", "error: this is wrong; give another\n")


@pytest.mark.parametrize("becomes", [KeyboardInterrupt, ImportError])
def test_ctrl_c_is_one_line_and_status_130(becomes, monkeypatch, capsys):
    def interrupted(argv: list[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:  # which libraries turn into other errors, and make sends twice
            os.kill(os.getpid(), signal.SIGINT)
            raise becomes from None

    monkeypatch.setattr(os, "_exit", sys.exit)  # in this thread
    with pytest.raises(SystemExit) as exit:
        run_program(interrupted, monkeypatch)
    assert exit.value.code == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_bugs_exit_with_status_70(monkeypatch, capsys):
    def broken(argv: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as exit:
        run_program(broken, monkeypatch)
    assert exit.value.code == 70  # 1 is the verdict of check, verify and compare
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.fixture
def started_again(monkeypatch) -> list[Any]:
    """What os.execv was called with, on Linux without settings of glibc."""
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # is set back after the test
    monkeypatch.delenv("GLIBC_TUNABLES")
    return started


def test_the_program_restarts_once_with_huge_pages_and_prints_it(started_again, capsys):
    program.run(lambda argv: None, computes=True)
    program.run(lambda argv: None, computes=True)
    assert started_again == [(sys.executable, sys.orig_argv)]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    program.print_huge_pages()
    assert "SEGRET_HUGE_PAGES=0 turns it off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("GLIBC_TUNABLES", "the user's own"), ("SEGRET_HUGE_PAGES", "0")]
)
def test_huge_pages_can_be_turned_off(started_again, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    program.run(lambda argv: None, computes=True)
    assert started_again == []


@pytest.mark.parametrize("argv", [["train", "--help"], ["predict", "-h"], ["data", "check"]])
def test_commands_that_do_not_compute_do_not_restart(started_again, monkeypatch, argv):
    monkeypatch.setattr(sys, "argv", ["segret", *argv])
    with contextlib.suppress(SystemExit):
        main.run()
    assert started_again == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "train.py --config deom",
            r"error: unknown config 'deom': did you mean 'demo'\?",
        ),
        (
            "-m segret_jax train --config demo --config.train.stpes=4",
            r"error: unknown config key 'train.stpes': did you mean 'train.steps'\?",
        ),
        (
            "predict.py nowhere.jpg --checkpoint runs/none --out out",
            r"error: runs/none does not exist; give the folder of a run, of a checkpoint or of .*",
        ),
    ],
)
def test_as_a_program(command, message):
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(f"{message}\n", done.stderr)


def test_a_misspelled_key_in_a_config_file_is_named(tmp_path):
    file = tmp_path / "mine.py"
    head = "from segret_jax.config import Config\n\ndef get_config():\n    config = Config()\n"
    file.write_text(head + "    config.optim.learning_rat = 1.0\n    return config\n")
    with pytest.raises(InputError, match=r"'optim\.learning_rat'.*'optim\.learning_rate'"):
        cli.load_config_file(str(file))
    file.write_text(head)
    with pytest.raises(InputError, match="returns NoneType, not a Config"):
        cli.load_config_file(str(file))


@dataclass(slots=True, kw_only=True)
class OtherSettings:
    groups: int = setting(1)


def test_a_misspelled_setting_of_another_family_names_that_family_s(tmp_path, monkeypatch):
    other = dataclasses.replace(FAMILIES["segret"], settings=OtherSettings)
    monkeypatch.setitem(FAMILIES, "other", other)
    file = tmp_path / "mine.py"
    file.write_text(
        "from segret_jax.config import Config, choose_family\n\n"
        "def get_config():\n    config = Config()\n    choose_family(config.model, 'other')\n"
        "    config.model.settings.gruops = 2\n    return config\n"
    )
    with pytest.raises(InputError, match=r"'model\.settings\.gruops'.*'model\.settings\.groups'"):
        cli.load_config_file(str(file))


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("train.xyzzy", "train.accumulate"),
        ("wxyz.wxyz", "Known: data, eval, init_from, mesh, model, optim, train."),
    ],
)
def test_an_unknown_key_lists_only_the_keys_of_its_group(key, known):
    message = refused(f"{key}=1")
    assert known in message
    assert ("optim.beta1" in message, "data.root" in message) == (False, False)
