"""Settings chosen to fit data and machine: what is chosen, that it is kept, and overrides."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segret_jax import config as configs
from segret_jax.cli import aot
from segret_jax.cli.arguments import apply_overrides, load_config_file
from segret_jax.config import Config, left_open
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.models.families import FAMILIES
from segret_jax.run.memory import Machine, Memory
from segret_jax.settings import rules
from segret_jax.training import loop, sizing
from segret_jax.training.forecast import forecast
from segret_jax.training.sizing import Data

ROOT = Path(__file__).parents[2]
OWN = ROOT / "configs/own.py"
PHOTOS = Data(num_training=367, num_validation=101, num_classes=11, size=(360, 480))
LAPTOP = Machine("cpu", 1, Memory(16e9, 8e9))
GPU = Machine("gpu", 1, Memory(24e9, 23e9))
SLOW, FAST = 1e11, 3e14  # FLOP/s
NUM_PARAMS = 13_400_000  # of tiny


def choose(config: Config, data: Data, machine: Machine, speed: float) -> Config:
    return sizing.choose(config, data, machine, speed=speed, num_params=NUM_PARAMS)


def own(*overrides: str) -> Config:
    return apply_overrides(load_config_file(str(OWN)), [f"--config.{o}" for o in overrides])


def test_own_config_leaves_every_sized_setting_open() -> None:
    assert left_open(own()) == tuple(k for k, rule in rules(own()).items() if rule.sized)
    with pytest.raises(InputError, match=r"FILE\.json"):
        class_table(own().data)


def test_the_command_of_the_data_page_fits_a_laptop() -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition("## Your own")[2]
    command = re.search(r"segret (train [^`]*?--workdir runs/\w+)", page)
    assert command
    words = command[1].replace("\\\n", " ").split()
    config = load_config_file(words[words.index("--config") + 1])
    config = apply_overrides(config, [word for word in words if word.startswith("--config.")])
    assert config.train.steps * config.train.batch_size < 100_000
    chosen = choose(config, PHOTOS, LAPTOP, SLOW)
    assert forecast(chosen, LAPTOP, NUM_PARAMS, PHOTOS.num_classes).total < 4e9
    assert chosen.train.steps * chosen.train.batch_size < 100_000


@pytest.mark.parametrize(
    ("data", "machine", "speed", "crop", "base", "batch"),
    [
        (PHOTOS, LAPTOP, SLOW, (192, 256), (341, 256), 8),
        (PHOTOS, GPU, FAST, (352, 480), (480, 360), 16),
        # A tall photograph of 12 megapixels, and images that lie either way.
        (replace(PHOTOS, size=(4000, 3000)), LAPTOP, SLOW, (256, 192), (341, 256), 8),
        (replace(PHOTOS, size=(4000, 3000)), GPU, FAST, (672, 512), (683, 512), 8),
        (replace(PHOTOS, is_mixed=True), LAPTOP, SLOW, (192, 192), (341, 256), 8),
        # Little memory, few images, tiny images, several devices.
        (PHOTOS, replace(LAPTOP, memory=Memory(16e9, 2.5e9)), SLOW, (192, 256), (341, 256), 4),
        (replace(PHOTOS, num_training=5), LAPTOP, SLOW, (192, 256), (341, 256), 4),
        (replace(PHOTOS, size=(20, 24)), LAPTOP, SLOW, (32, 32), (24, 20), 8),
        (PHOTOS, replace(GPU, num_devices=4), FAST, (352, 480), (480, 360), 16),
        (PHOTOS, replace(GPU, memory=Memory(math.nan, math.nan)), FAST, (352, 480), (480, 360), 16),
    ],
)
def test_sizes_follow_data_and_machine(
    data: Data, machine: Machine, speed: float, crop: Any, base: Any, batch: int
) -> None:
    config = configs.validate(choose(own(), data, machine, speed))
    assert left_open(config) == ()
    assert (config.data.crop, config.data.resize_base) == (crop, base)
    assert config.eval.resize_target == base
    assert config.train.batch_size == batch


@pytest.mark.parametrize(
    ("size", "crop", "base"),
    [((480, 640), (224, 256), (341, 256)), ((20, 24), (224, 224), (269, 224))],
)
def test_sizes_are_those_that_the_family_admits(monkeypatch, size, crop, base) -> None:
    family = replace(FAMILIES["segret"], multiple_of=32, min_side=193)
    monkeypatch.setitem(FAMILIES, "segret", family)
    data = replace(PHOTOS, size=size)
    chosen = configs.validate(choose(own("eval.multiple_of=32"), data, LAPTOP, SLOW))
    assert (chosen.data.crop, chosen.data.resize_base) == (crop, base)
    assert chosen.eval.resize_target == base


@pytest.mark.parametrize(
    ("min_batch", "devices", "accumulate", "batch"),
    [(2, 1, 1, 2), (2, 1, 3, 6), (2, 1, 10, 20), (2, 2, 1, 2), (2, 4, 1, 4), (3, 1, 1, 3)],
)
def test_a_small_memory_leaves_the_images_that_the_family_needs(
    monkeypatch, min_batch, devices, accumulate, batch
) -> None:
    monkeypatch.setitem(FAMILIES, "segret", replace(FAMILIES["segret"], min_batch=min_batch))
    gpu = Machine("gpu", devices, Memory(24e9, 1e6))
    chosen = choose(own(f"train.accumulate={accumulate}"), PHOTOS, gpu, FAST)
    assert configs.validate(chosen).train.batch_size == batch


def test_steps_fill_the_time_and_stop_at_a_number_of_passes() -> None:
    def steps(minutes: int, data: Data = PHOTOS, speed: float = SLOW) -> int:
        return choose(own(f"train.minutes={minutes}"), data, LAPTOP, speed).train.steps

    assert steps(120) == pytest.approx(2 * steps(60), abs=2)
    assert steps(60, speed=SLOW / 2) == pytest.approx(steps(60) / 2, abs=1)
    assert steps(6000, replace(PHOTOS, num_training=40)) == sizing.MAX_PASSES * 40 // 8
    assert steps(1) == sizing.MIN_STEPS


def test_evaluation_takes_a_tenth_of_the_time() -> None:
    few = choose(own(), PHOTOS, LAPTOP, SLOW).train
    assert math.ceil(few.steps / few.eval_every) == sizing.MAX_EVALUATIONS
    many = choose(own(), replace(PHOTOS, num_validation=2000), LAPTOP, SLOW).train
    assert many.eval_every > few.eval_every


def test_learning_rate_is_lower_with_weights_to_start_from() -> None:
    scratch = choose(own(), PHOTOS, LAPTOP, SLOW).optim
    weights = choose(own("init_from=rmt_tiny"), PHOTOS, LAPTOP, SLOW).optim
    assert (scratch.learning_rate, weights.learning_rate) == (1e-3, 7.1e-5)
    assert choose(own("train.batch_size=2"), PHOTOS, LAPTOP, SLOW).optim.learning_rate == 5e-4


@pytest.mark.parametrize(
    "override",
    ["data.crop=64,96", "optim.learning_rate=3e-4", "train.steps=7", "train.batch_size=3",
     "train.eval_every=5", "optim.warmup_steps=9", "data.resize_base=99,77",
     "eval.resize_target=99,77"],
)  # fmt: skip
def test_an_override_wins(override: str) -> None:
    given = own(override)
    key = override.partition("=")[0]
    chosen = choose(given, PHOTOS, LAPTOP, SLOW)
    assert configs.flatten(chosen)[key] == configs.flatten(given)[key]


def test_accumulation_divides_the_batch_that_is_chosen() -> None:
    chosen = choose(own("train.accumulate=3"), PHOTOS, LAPTOP, SLOW)
    assert configs.validate(chosen).train.batch_size == 6


def test_a_zero_is_refused_where_nothing_sizes_it() -> None:
    with pytest.raises(InputError, match=r"^train.steps is 0; it must be positive"):
        own(
            "train.minutes=0", "train.batch_size=1", "data.crop=32,32", "data.resize_base=32,32",
            "eval.resize_target=32,32", "optim.learning_rate=1e-3", "train.eval_every=1",
        )  # fmt: skip
    with pytest.raises(InputError, match=r"^train.steps is -1; it must be positive"):
        own("train.steps=-1")


def test_a_command_that_starts_no_run_asks_for_the_values() -> None:
    argv = ["--config", str(OWN), "--topology", "v5e:2x2", "--config.train.steps=9"]
    with pytest.raises(InputError, match=r"^only a run chooses data.crop, .*train.batch_size"):
        aot.main(argv)


@pytest.mark.parametrize(
    ("rate", "time"), [(60.0, "16 seconds"), (15.0, "1 minute"), (1.6, "10 minutes")]
)
def test_the_time_is_in_seconds_or_minutes(rate: float, time: str) -> None:
    config = own("train.steps=100", "train.batch_size=8", "data.crop=32,32")
    assert f"roughly {time} on this machine" in sizing.describe(config, PHOTOS, rate)


def test_a_run_says_its_sizes_and_keeps_them(mini, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(loop, "_train", lambda *_: None)  # as if stopped before the first step
    config = own(
        "data.dataset=synthetic", "data.synthetic_size=32,32", "train.steps=1",
        "data.synthetic_train=4", "data.synthetic_validation=1", "eval.pictures=0",
    )  # fmt: skip
    loop.train(config, tmp_path)
    said = " ".join("".join(capfd.readouterr()).split())
    assert "sized for 4 images of about 32x32 and 60 minutes: crops of 32x32, batches of" in said
    assert "from scratch" in said
    assert "GB of memory" in said
    saved = configs.load(tmp_path / "config.json")
    assert left_open(saved) == ()

    monkeypatch.setattr(sizing, "examine", lambda *_: pytest.fail("sized again"))
    loop.train(config, tmp_path)
    assert configs.load(tmp_path / "config.json") == saved
    config.train.minutes = 5
    with pytest.raises(InputError, match=r"train.minutes \(60.0 there, 5 here\)"):
        loop.train(config, tmp_path)
