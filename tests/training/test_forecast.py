"""The forecast of a run's memory: said, refused before anything is compiled, and about right."""

import math
from dataclasses import replace

import jax
import pytest

from segret_jax.aot import programs
from segret_jax.aot.chips import CHIPS, Topology
from segret_jax.config import Config, DataConfig, ModelConfig, TrainConfig, choose_family, validate
from segret_jax.errors import InputError
from segret_jax.models.families import FAMILIES
from segret_jax.run.memory import Machine, Memory
from segret_jax.training import loop
from segret_jax.training.forecast import check_memory, forecast, smaller_configs

TINY = 13_900_000  # parameters


# model, crop, batch, platform: parameters, classes, and the arguments and temporaries of the
# compiled step in GB (jax 0.10.2; accelerators: benchmarks/results/aot, a TPU v5e and an A100).
MEASURED = [
    ("segret_tiny", (128, 160), 8, "cpu", 13.4e6, 19, 0.73),
    ("segret_tiny", (256, 256), 4, "cpu", 13.4e6, 19, 1.04),
    ("segret_tiny", (512, 512), 4, "cpu", 13.4e6, 19, 3.51),
    ("segret_tiny", (512, 512), 16, "cpu", 13.4e6, 19, 13.49),
    ("segret_small", (256, 256), 4, "cpu", 26.0e6, 19, 1.52),
    ("segret_tiny", (512, 512), 1, "tpu", 13.5e6, 150, 1.65),
    ("segret_small", (512, 512), 1, "tpu", 26.0e6, 150, 2.38),
    ("segret_base", (512, 512), 1, "tpu", 57.0e6, 150, 4.35),
    ("segret_large", (640, 640), 1, "tpu", 101e6, 150, 8.85),
    ("segret_large", (640, 640), 2, "gpu", 101e6, 150, 16.2),
    ("segman_tiny", (224, 256), 2, "cpu", 6.4e6, 19, 0.397),
    ("segman_tiny", (224, 256), 8, "cpu", 6.4e6, 19, 1.307),
    ("segman_tiny", (512, 512), 2, "cpu", 6.4e6, 150, 1.473),
    ("segman_small", (224, 256), 4, "cpu", 29.4e6, 19, 2.068),
    ("segman_base", (224, 256), 2, "cpu", 51.8e6, 19, 2.657),
]


@pytest.mark.parametrize(
    ("model", "crop", "batch", "platform", "num_params", "num_classes", "measured"), MEASURED
)
def test_forecast_is_near_what_xla_says(
    model: str, crop: tuple[int, int], batch: int, platform: str, num_params: float,
    num_classes: int, measured: float,
) -> None:  # fmt: skip
    family, variant = model.split("_")
    config = Config(
        model=ModelConfig(variant=variant),
        data=DataConfig(crop=crop),
        train=TrainConfig(batch_size=batch),
    )
    choose_family(config.model, family)
    found = forecast(config, machine(math.nan, platform=platform), int(num_params), num_classes)
    assert found.state + found.activations == pytest.approx(measured * 1e9, rel=0.11)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_forecast_is_near_what_xla_says_of_a_step_compiled_now() -> None:
    config = Config(data=DataConfig(crop=(64, 96)), train=TrainConfig(batch_size=8))
    cpu = Topology("v5e:1x1", CHIPS["v5e"], jax.devices()[:1])  # in name alone
    analysis = programs.train_step(config, 8, cpu).compile().memory_analysis()
    needed = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    found = forecast(config, machine(math.nan), analysis.output_size_in_bytes // 12, 8)
    assert found.state + found.activations == pytest.approx(needed, rel=0.2)


def machine(total: float, free: float = math.nan, platform: str = "cpu") -> Machine:
    return Machine(platform, 1, Memory(total, free))


def check(config: Config, machine: Machine) -> str:
    return check_memory(config, machine, TINY, 150)


def test_needed_memory_is_printed() -> None:
    assert "GB of memory; 50.0 GB are free" in check(Config(), machine(64e9, 50e9))
    assert check(Config(), machine(64e9, 2e9)).startswith("WARNING: training needs about ")
    assert check(Config(), machine(math.nan)).endswith("GB of memory")
    assert "per device" in check(Config(), machine(80e9, 70e9, "gpu"))


def test_too_much_is_refused_with_settings_that_fit() -> None:
    with pytest.raises(InputError) as refusal:
        check(Config(), machine(8e9))
    message = str(refusal.value)
    assert "\n" not in message
    assert "but there are 8.0 GB: give --config.train.accumulate=" in message
    for key in ("train.batch_size", "data.crop", "model.dtype"):
        assert key in message
    assert "model.remat" not in message
    with pytest.raises(InputError, match=r"data.crop, model.remat=1,2,3,4, or model.dtype"):
        check(Config(), machine(8e9, platform="gpu"))
    with pytest.raises(InputError, match=r"8.0 GB: give --config.train.batch_size=2 "):
        check(Config(data=DataConfig(crop=(768, 768))), machine(8e9))
    with pytest.raises(InputError, match=r"0.1 GB: change train.batch_size"):
        check(Config(), machine(1e8))


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputation_saves_memory_on_accelerators_alone(family: str) -> None:
    def needed(platform: str, remat: tuple[int, ...]) -> float:
        config = Config(model=ModelConfig(variant="small", remat=remat))
        choose_family(config.model, family)
        return forecast(config, machine(1e9, platform=platform), TINY, 150).activations

    assert needed("cpu", (1, 2, 3, 4)) == needed("cpu", ())
    assert needed("gpu", (1, 2, 3, 4)) < 0.7 * needed("gpu", ())


def test_within_the_error_of_the_forecast_nothing_is_refused() -> None:
    needed = forecast(Config(), machine(1e9), TINY, 150).total
    assert "WARNING" in check(Config(), machine(needed * 0.9, needed * 0.8))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_suggested_settings_need_less_memory(accumulate: int) -> None:
    config = Config(train=TrainConfig(batch_size=16, accumulate=accumulate))
    offered = [
        forecast(c, machine(1e9), TINY, 150).activations for c, _ in smaller_configs(config, 1)
    ]
    assert len(offered) > 3
    assert max(offered) < forecast(config, machine(1e9), TINY, 150).activations


@pytest.mark.parametrize(
    ("min_batch", "suggested"),
    [
        (1, [(16, 2), (16, 4), (8, 1), (4, 1), (2, 1), (1, 1)]),
        (2, [(16, 2), (16, 4), (8, 1), (4, 1), (2, 1)]),
        (8, [(16, 2), (8, 1)]),
    ],
)
def test_suggested_settings_have_the_images_that_the_family_needs(
    monkeypatch, min_batch, suggested
) -> None:
    family = replace(FAMILIES["segret"], min_batch=min_batch)
    monkeypatch.setitem(FAMILIES, "segret", family)
    changed = [validate(c).train for c, _ in smaller_configs(Config(), 1)]
    assert [(train.batch_size, train.accumulate) for train in changed] == suggested


def test_a_run_is_refused_before_its_folder_is_made(mini, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "machine_of", lambda mesh: machine(1e8))
    monkeypatch.setattr(loop, "make_train_step", lambda *_: pytest.fail("built a step"))
    config = Config(data=DataConfig(synthetic_train=4, synthetic_validation=1))
    with pytest.raises(InputError, match=r"needs about [\d.]+ GB of memory, but there are 0.1 GB"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
