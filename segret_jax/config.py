"""Every setting of a run, in groups; a file in configs/ returns a `Config` from `get_config()`.

Plain dataclasses with plain values, so that each key can be given on the command line
(`--config.train.steps=100`), printed, compared and saved as JSON beside a checkpoint. What holds
for a setting stands at its field (`settings.Rules`). No I/O on data and no JAX here. `validate` is
called once, after parsing.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segret_jax import settings
from segret_jax.errors import InputError
from segret_jax.files import atomic_write
from segret_jax.models.config import ModelConfig, check_model, check_segmentation, choose_family
from segret_jax.settings import flatten, set_value, setting

__all__ = ["ModelConfig", "check_segmentation", "choose_family", "flatten", "set_value"]


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where images come from and how training crops are made. Sizes are (height, width)."""

    dataset: str = setting("synthetic", "a known name, or your own FILE.json")
    root: str = setting("", "folder of a real data set; empty: data/DATASET", may_change=True)
    crop: tuple[int, int] = setting((512, 512), "size of a crop", above=0, sized=True)
    resize_base: tuple[int, int] = setting(
        (2048, 512), "(long, short) side at ratio 1", above=0, sized=True
    )
    resize_ratio: tuple[float, float] = setting((0.5, 2.0), "(smallest, largest)", above=0)
    workers: int = setting(0, "processes; 0: threads of this one", minimum=0, may_change=True)
    on_error: str = setting(
        "stop", "or skip an unreadable training sample: it becomes all-ignored",
        choices=("stop", "skip"), may_change=True,
    )  # fmt: skip
    synthetic_size: tuple[int, int] = setting((128, 160), "of the scenes", minimum=32)
    synthetic_train: int = setting(4096, "scenes", above=0)
    synthetic_validation: int = setting(64, "scenes", above=0)


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """AdamW with a poly schedule and linear warmup (spec table, one row per recipe)."""

    learning_rate: float = setting(1e-4, "at its highest", above=0, sized=True)
    weight_decay: float = setting(0.01, "decoupled", minimum=0)
    beta1: float = setting(0.9, "decay of the gradients' mean", minimum=0, below=1)
    beta2: float = setting(0.999, "decay of the mean of their squares", minimum=0, below=1)
    epsilon: float = setting(1e-8, "added to the root of that mean", above=0)
    norm_rules: bool = setting(True, "the family's rules by parameter: learning rate, weight decay")
    poly_power: float = setting(0.9, "of the schedule (1 - t/T)^p", above=0)
    min_learning_rate: float = setting(0.0, "where the schedule ends", minimum=0)
    warmup_steps: int = setting(0, "of linear warmup", minimum=0, sized=True)
    warmup_ratio: float = setting(1e-6, "of the learning rate, at step 0", minimum=0)


@dataclass(slots=True, kw_only=True)
class TrainConfig:
    """The loop."""

    minutes: float = setting(
        0.0,
        "above 0: settings that are 0 are chosen to fit in this time",
        minimum=0,
        compiled=False,
    )
    steps: int = setting(160_000, "of the optimizer", above=0, sized=True)
    batch_size: int = setting(
        16, "global: devices and hosts only change the split", above=0, sized=True
    )
    seed: int = setting(0, "of weights, data order and dropout", minimum=0)
    loss_normalizer: str = setting(
        "all_pixels",
        "as the released code, or valid_pixels",
        choices=("all_pixels", "valid_pixels"),
    )
    class_weights: tuple[float, ...] = setting(
        (), "of the loss, one per class; empty: all 1", minimum=0, entry=1.0
    )
    ohem_threshold: float = setting(
        0.0, "train on pixels whose class has less probability; 0: on all", minimum=0, below=1
    )
    ohem_min_kept: int = setting(100_000, "pixels per image that OHEM keeps at least", above=0)
    accumulate: int = setting(1, "parts of a batch, one after another: less memory", above=0)
    ema_decay: float = setting(
        0.0, "of averaged weights, which are then evaluated and used; 0: none", minimum=0, below=1
    )
    max_bad_steps: int = setting(
        0, "steps to skip whose loss or gradient is not finite", minimum=0, may_change=True
    )
    log_every: int = setting(50, "steps", above=0, may_change=True, compiled=False)
    save_every: int = setting(
        1_000, "steps: a checkpoint, beside those of evaluations", above=0, may_change=True,
        compiled=False,
    )  # fmt: skip
    eval_every: int = setting(
        8_000, "steps: an evaluation, a checkpoint and a picture", above=0, sized=True,
        may_change=True, compiled=False,
    )  # fmt: skip
    keep_checkpoints: int = setting(
        2, "newest ones, beside the best", above=0, may_change=True, compiled=False
    )


@dataclass(slots=True, kw_only=True)
class MeshConfig:
    """How training is spread over the devices; results do not depend on it.

    The batch is split over all of them. Along `fsdp` the parameters and the optimizer's moments
    are split, too; along `data` they are repeated.
    """

    data: int = setting(-1, "devices; -1: all that the other axis leaves", may_change=True)
    fsdp: int = setting(1, "devices", may_change=True)


@dataclass(slots=True, kw_only=True)
class EvalConfig:
    """How images are put before the network, and what is made of its answers."""

    resize_target: tuple[int, int] = setting(
        (2048, 512), "(long, short) at scale 1, the ratio is kept", above=0, sized=True
    )
    multiple_of: int = setting(32, "second resize up to multiples of this; 1: none", above=0)
    mode: str = setting(
        "whole", "the resized image at once, or slide: in windows", choices=("whole", "slide")
    )
    window: tuple[int, int] = setting((512, 512), "of slide, (height, width)", above=0)
    stride: tuple[int, int] = setting((384, 384), "of slide, from window to window", above=0)
    scales: tuple[float, ...] = setting(
        (1.0,), "of resize_target; probabilities are averaged", minimum=0.1, maximum=10, entry=1.0
    )
    flip: bool = setting(False, "average with the mirrored image's probabilities too")
    batch_size: int = setting(1, "images per device", above=0, may_change=True)
    pictures: int = setting(6, "images in an evaluation's picture", minimum=0, may_change=True)


@dataclass(slots=True, kw_only=True)
class Config:
    """All of a run."""

    init_from: str = setting("", "a checkpoint's or run's folder: weights to start training from")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def validate(config: Config) -> Config:
    """Return `config` if every value is possible; raise InputError naming the first that is not."""
    settings.check(config, ignore_bounds_of=left_open(config))
    check_model(config.model)
    train, data, evaluation = config.train, config.data, config.eval
    if not evaluation.scales or len(set(evaluation.scales)) < len(evaluation.scales):
        raise InputError(f"eval.scales is {evaluation.scales}; give different numbers")
    if train.batch_size % train.accumulate:
        raise InputError(
            f"train.accumulate is {train.accumulate}; it must divide train.batch_size, "
            f"{train.batch_size}"
        )
    low, high = data.resize_ratio
    if low > high:
        raise InputError(f"data.resize_ratio is ({low}, {high}); give (smallest, largest)")
    if any(s > w for s, w in zip(evaluation.stride, evaluation.window, strict=True)):
        raise InputError(
            f"eval.stride is {evaluation.stride}; "
            f"more than eval.window {evaluation.window} would leave pixels out"
        )
    return config


def left_open(config: Config) -> tuple[str, ...]:
    """Return the settings that are to be chosen to fit data and machine."""
    if not (isinstance(config.train.minutes, int | float) and config.train.minutes > 0):
        return ()
    rules, values = settings.rules(config), flatten(config)
    return tuple(key for key, rule in rules.items() if rule.sized and values[key] in (0, (0, 0)))


def save(config: Config, path: Path) -> None:
    """Write the resolved config as JSON; what was there stays whole if the disk is full."""
    atomic_write(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load(path: Path) -> Config:
    """Read what `save` wrote; raise InputError if the file is not there or not a config."""
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"no config at {path}: is this a run's folder?") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} does not hold this version's config: {error}") from None


def from_dict(groups: dict[str, Any]) -> Config:
    """Build a Config from nested plain values (JSON lists become tuples)."""
    config = Config()
    choose_family(config.model, groups.get("model", {}).get("family", config.model.family))
    _fill(config, groups)
    return config


def _fill(group: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _fill(getattr(group, name), value)
        elif isinstance(group, ModelConfig) and hasattr(group.settings, name):
            setattr(group.settings, name, value)  # of a config from before there were families
        else:
            setattr(group, name, tuple(value) if isinstance(value, list) else value)
