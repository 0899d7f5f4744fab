"""Every setting of a run, in groups; a file in configs/ returns a `Config` from `get_config()`.

The groups are dataclasses of plain values: each key can be given on the command line
(`--config.train.steps=100`), printed, compared and saved as JSON beside a checkpoint. Each field
carries the rules of its values (`settings.Rules`). Free of JAX. `validate` is called once, after
parsing.
"""

import ast
import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from segret_jax import settings
from segret_jax.errors import InputError, unknown_name
from segret_jax.files import atomic_write
from segret_jax.models.config import ModelConfig, check_model, check_segmentation, choose_family
from segret_jax.models.families import get_family
from segret_jax.settings import flatten, set_value, setting

__all__ = ["ModelConfig", "check_segmentation", "choose_family", "flatten", "set_value"]


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where images come from and how training crops are made. Sizes are (height, width)."""

    dataset: str = setting("synthetic")
    """The name of a known dataset, or your own FILE.json."""
    root: str = setting("", may_change=True)
    """Folder of a real dataset; empty: data/DATASET."""
    crop: tuple[int, int] = setting((512, 512), above=0, sized=True)
    """Size of a training crop."""
    resize_base: tuple[int, int] = setting((2048, 512), above=0, sized=True)
    """(Long, short) side at ratio 1."""
    resize_ratio: tuple[float, float] = setting((0.5, 2.0), above=0)
    """(Smallest, largest) ratio of the random resize."""
    workers: int = setting(0, minimum=0, may_change=True)
    """Worker processes; 0: threads of the main process."""
    on_error: str = setting("stop", choices=("stop", "skip"), may_change=True)
    """Stop at an unreadable training sample, or skip it: all of its pixels are ignored."""
    synthetic_size: tuple[int, int] = setting((128, 160), minimum=32)
    """Size of the generated scenes."""
    synthetic_train: int = setting(4096, above=0)
    """Number of generated training scenes."""
    synthetic_validation: int = setting(64, above=0)
    """Number of generated validation scenes."""


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warmup and a polynomial schedule."""

    learning_rate: float = setting(1e-4, above=0, sized=True)
    """The peak learning rate."""
    weight_decay: float = setting(0.01, minimum=0)
    """Decoupled weight decay."""
    beta1: float = setting(0.9, minimum=0, below=1)
    """Decay of the first moment."""
    beta2: float = setting(0.999, minimum=0, below=1)
    """Decay of the second moment."""
    epsilon: float = setting(1e-8, above=0)
    """Added to the root of the second moment."""
    norm_rules: bool = setting(True)
    """Apply the family's learning rate and weight decay by parameter group."""
    poly_power: float = setting(0.9, above=0)
    """p of the schedule (1 - t/T)^p."""
    min_learning_rate: float = setting(0.0, minimum=0)
    """The learning rate at the end of the schedule."""
    warmup_steps: int = setting(0, minimum=0, sized=True)
    """Steps of linear warmup."""
    warmup_ratio: float = setting(1e-6, minimum=0)
    """Fraction of the learning rate at step 0 of the warmup."""


@dataclass(slots=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    minutes: float = setting(0.0, minimum=0, compiled=False)
    """Above 0: choose every setting that is 0 so that training fits in this time."""
    steps: int = setting(160_000, above=0, sized=True)
    """Optimizer steps."""
    batch_size: int = setting(16, above=0, sized=True)
    """Global batch size, over all devices and hosts."""
    seed: int = setting(0, minimum=0)
    """Seed of weights, data order and dropout."""
    loss_normalizer: str = setting("all_pixels", choices=("all_pixels", "valid_pixels"))
    """Divide the summed loss by all pixels (released code) or by the labeled ones."""
    class_weights: tuple[float, ...] = setting((), minimum=0, entry=1.0)
    """Weights of the loss, one per class; empty: all 1."""
    ohem_threshold: float = setting(0.0, minimum=0, below=1)
    """Train on pixels whose class has a lower probability (OHEM); 0: on all pixels."""
    ohem_min_kept: int = setting(100_000, above=0)
    """Pixels per image that OHEM keeps at least."""
    accumulate: int = setting(1, above=0)
    """Micro-batches per step: gradients are accumulated, to save memory."""
    ema_decay: float = setting(0.0, minimum=0, below=1)
    """Decay of the averaged weights (EMA), which are then evaluated and used; 0: none."""
    max_bad_steps: int = setting(0, minimum=0, may_change=True)
    """Steps with a loss or gradient that is not finite to skip before training stops."""
    log_every: int = setting(50, above=0, may_change=True, compiled=False)
    """Steps between log lines."""
    save_every: int = setting(1_000, above=0, may_change=True, compiled=False)
    """Steps between checkpoints, beside those of evaluations."""
    eval_every: int = setting(8_000, above=0, sized=True, may_change=True, compiled=False)
    """Steps between evaluations, each with a checkpoint and a picture."""
    keep_checkpoints: int = setting(2, above=0, may_change=True, compiled=False)
    """Newest checkpoints to keep, beside the best."""


@dataclass(slots=True, kw_only=True)
class MeshConfig:
    """How training is spread over the devices; results do not depend on it.

    The batch is split over all devices. Along the axis `fsdp` (fully sharded data parallelism) the
    parameters and the optimizer's moments are sharded too; along `data` they are replicated.
    """

    data: int = setting(-1, may_change=True)
    """Devices along `data`; -1: all that `fsdp` leaves."""
    fsdp: int = setting(1, may_change=True)
    """Devices along `fsdp`."""


@dataclass(slots=True, kw_only=True)
class EvalConfig:
    """How images are prepared for the network, and how its predictions are combined."""

    resize_target: tuple[int, int] = setting((2048, 512), above=0, sized=True)
    """(Long, short) side that the image must fit at scale 1; the aspect ratio is kept."""
    multiple_of: int = setting(32, above=0)
    """Resize once more, up to multiples of this; 1: do not."""
    mode: str = setting("whole", choices=("whole", "slide"))
    """Predict the whole resized image at once, or by a sliding window."""
    window: tuple[int, int] = setting((512, 512), above=0)
    """Size of the sliding window, (height, width)."""
    stride: tuple[int, int] = setting((384, 384), above=0)
    """Stride of the sliding window, (height, width)."""
    scales: tuple[float, ...] = setting((1.0,), minimum=0.1, maximum=10, entry=1.0)
    """Scales of `resize_target`; their probabilities are averaged."""
    flip: bool = setting(False)
    """Average with the probabilities of the mirrored image too."""
    batch_size: int = setting(1, above=0, may_change=True, scored=False)
    """Images per device."""
    pictures: int = setting(6, minimum=0, may_change=True, scored=False)
    """Images in the picture of an evaluation."""


@dataclass(slots=True, kw_only=True)
class Config:
    """All settings of a run."""

    init_from: str = setting("")
    """Model whose weights training starts from: as `segret predict --checkpoint` takes it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def validate(config: Config) -> Config:
    """Return `config`; raise InputError for the first setting with an impossible value."""
    settings.check(config, ignore_bounds_of=left_open(config))
    check_model(config.model)
    train, evaluation = config.train, config.eval
    if not evaluation.scales or len(set(evaluation.scales)) < len(evaluation.scales):
        raise InputError(f"eval.scales is {evaluation.scales}; give different numbers")
    batch, parts = train.batch_size, train.accumulate
    if batch % parts:
        raise InputError(f"train.accumulate is {parts}; it must divide train.batch_size, {batch}")
    low, high = config.data.resize_ratio
    if low > high:
        raise InputError(f"data.resize_ratio is ({low}, {high}); give (smallest, largest)")
    stride, window = evaluation.stride, evaluation.window
    if stride[0] > window[0] or stride[1] > window[1]:
        raise InputError(f"eval.stride is {stride}; it must be at most eval.window, {window}")
    get_family(config.model.family).check_settings(config)
    return config


def left_open(config: Config) -> tuple[str, ...]:
    """Return the keys of settings that are to be chosen to fit data and machine."""
    minutes = config.train.minutes
    if not (isinstance(minutes, int | float) and minutes > 0):
        return ()
    rules, values = settings.rules(config), flatten(config)
    return tuple(key for key, rule in rules.items() if rule.sized and values[key] in (0, (0, 0)))


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Set several settings of `config`, then validate the whole.

    Args:
        config: The config, which is changed.
        values: The values by key, such as {"eval.flip": True}; a text is read as on the command
            line.

    Returns:
        `config`.

    Raises:
        InputError: A key is unknown, or a value is impossible.
    """
    for key in sorted(values, key=lambda one: one != "model.family"):
        settings_now, value = flatten(config), values[key]
        if key not in settings_now:
            raise unknown_key(key, settings_now)
        value = _parse(value, settings_now[key])
        if settings.rules(config)[key].entry is not None and isinstance(value, int | float):
            value = (value,)
        if key == "model.family" and value != config.model.family:
            choose_family(config.model, value)
        set_value(config, key, value)
    return validate(config)


def unknown_key(key: str, known: Mapping[str, Any]) -> InputError:
    """Return the error that names the nearest key, else the keys of its group, else the groups."""
    group, _, name = key.partition(".")
    if f"{group}.settings.{name}" in known:
        return InputError(
            f"{key} belongs to the family: write --config.{group}.settings.{name}=VALUE"
        )
    names = [one for one in known if one.startswith(f"{group}.")]
    if get_close_matches(key, known, n=1):
        names = list(known)
    return unknown_name("config key", key, names or {one.split(".")[0] for one in known})


def _parse(value: Any, default: Any) -> Any:
    """Return a value, or what a text says, as the type of `default`; `validate` refuses others."""
    if isinstance(value, str) and not isinstance(default, str):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value.capitalize() if isinstance(default, bool) else value)
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, list) else value
    return float(value) if isinstance(default, float) and type(value) is int else value


def save(config: Config, path: Path) -> None:
    """Write the resolved config as JSON, atomically."""
    atomic_write(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load(path: Path) -> Config:
    """Read what `save` wrote; raise InputError if the file is missing or not a config."""
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"no config at {path}: is this a run's folder?") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} does not hold a config of this version: {error}") from None


def from_dict(groups: dict[str, Any]) -> Config:
    """Return the config of what `dataclasses.asdict` made of one, lists for tuples.

    Raises ValueError, TypeError, AttributeError or KeyError for another content.
    """
    config = Config()
    choose_family(config.model, groups.get("model", {}).get("family", config.model.family))
    _fill(config, groups)
    return config


def _fill(group: Any, values: dict[str, Any]) -> None:
    """Set a group's values from JSON, where tuples are lists."""
    for name, value in values.items():
        if isinstance(value, dict):
            _fill(getattr(group, name), value)
        elif isinstance(group, ModelConfig) and not hasattr(group, name):
            setattr(group.settings, name, value)  # a config from before model families
        else:
            setattr(group, name, tuple(value) if isinstance(value, list) else value)
