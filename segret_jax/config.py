"""Every setting of a run, in groups; a file in configs/ returns a `Config` from `get_config()`.

Plain dataclasses with plain values, so that each key can be given on the command line
(`--config.train.steps=100`), printed, compared and saved as JSON beside a checkpoint.
No I/O on data and no JAX here. `validate` is called once, after parsing.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segret_jax.errors import InputError
from segret_jax.files import write_whole


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The network. Defaults are the released SegRet."""

    task: str = "segmentation"  # segmentation | classification: an ImageNet classifier, converted
    variant: str = "tiny"  # tiny | small | base | large
    decoder_channels: int = 0  # 0: the variant's own (256, 256, 256, 512)
    zero_branch: bool = True  # False: the paper's ablation, F_i = Linear_i(f_i)
    rotary: bool = False  # True with ffn_conv: the encoder of the RMT ImageNet classifier
    ffn_conv: bool = False
    token_head: bool = False  # of a classifier: it was trained with token labels
    decay: str = "additive"  # additive (released code) | post_softmax (the paper's wording)
    drop_path: float = -1.0  # of the last block; negative: the variant's own
    max_scores: int = 2**25  # of one image in a block of retention; GPU and TPU kernels choose
    remat: tuple[int, ...] = ()  # stages 1 to 4 computed twice in training: less memory
    kernels: str = "auto"  # auto | reference: plain formulas, exportable; they hold all scores
    dtype: str = "float32"  # of the computation: float32 | bfloat16; parameters stay float32
    matmul_precision: str = "default"  # default | high | highest; highest for parity on GPU, TPU


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where images come from and how training crops are made. Sizes are (height, width)."""

    dataset: str = "synthetic"
    root: str = ""  # folder of a real data set; empty: data/DATASET
    crop: tuple[int, int] = (512, 512)
    resize_base: tuple[int, int] = (2048, 512)  # (long, short) side at ratio 1
    resize_ratio: tuple[float, float] = (0.5, 2.0)
    workers: int = 0  # processes; 0: threads of this one
    on_error: str = "stop"  # stop | skip an unreadable training sample (it becomes all-ignored)
    synthetic_size: tuple[int, int] = (128, 160)
    synthetic_train: int = 4096
    synthetic_validation: int = 64


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """AdamW with a poly schedule and linear warmup (spec table, one row per recipe)."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    norm_rules: bool = True  # encoder norms: lr × 0.1; every norm: no decay
    poly_power: float = 0.9
    min_learning_rate: float = 0.0
    warmup_steps: int = 0
    warmup_ratio: float = 1e-6  # of the learning rate, at step 0


@dataclass(slots=True, kw_only=True)
class TrainConfig:
    """The loop."""

    minutes: float = 0.0  # above 0: settings of SIZED that are 0 are chosen to fit in this time
    steps: int = 160_000
    batch_size: int = 16  # global: devices and hosts only change the split
    seed: int = 0
    loss_normalizer: str = "all_pixels"  # all_pixels (released code) | valid_pixels
    class_weights: tuple[float, ...] = ()  # of the loss, one per class; empty: all 1
    ohem_threshold: float = 0.0  # train on pixels whose class has less probability; 0: on all
    ohem_min_kept: int = 100_000  # pixels per image that OHEM keeps at least
    accumulate: int = 1  # parts of a batch that are computed one after another: less memory
    ema_decay: float = 0.0  # of averaged weights, which are then evaluated and used; 0: none
    max_bad_steps: int = 0  # steps to skip whose loss or gradient is not finite, before stopping
    log_every: int = 50
    save_every: int = 1_000  # save a checkpoint, beside those of evaluations
    eval_every: int = 8_000  # evaluate, save a checkpoint and a picture
    keep_checkpoints: int = 2  # newest ones, beside the best


@dataclass(slots=True, kw_only=True)
class MeshConfig:
    """How training is spread over the devices; results do not depend on it.

    The batch is split over all of them. Along `fsdp` the parameters and the optimizer's moments
    are split, too; along `data` they are repeated.
    """

    data: int = -1  # devices; -1: all that the other axis leaves
    fsdp: int = 1


@dataclass(slots=True, kw_only=True)
class EvalConfig:
    """How images are put before the network, and what is made of its answers."""

    resize_target: tuple[int, int] = (2048, 512)  # (long, short) at scale 1, the ratio is kept
    multiple_of: int = 32  # second resize up to multiples of this; 1: none
    mode: str = "whole"  # whole | slide: the resized image at once, or in overlapping windows
    window: tuple[int, int] = (512, 512)  # of slide, (height, width)
    stride: tuple[int, int] = (384, 384)  # of slide, from window to window
    scales: tuple[float, ...] = (1.0,)  # of resize_target; the probabilities are averaged
    flip: bool = False  # average with the mirrored image's probabilities too
    batch_size: int = 1  # images per device; images share a batch if their network sizes agree
    pictures: int = 6  # images in the picture of each evaluation


@dataclass(slots=True, kw_only=True)
class Config:
    """All of a run."""

    init_from: str = ""  # a checkpoint's or run's folder: the weights to start training from
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


CHOICES = {
    "model.task": ("segmentation", "classification"),
    "model.variant": ("tiny", "small", "base", "large"),
    "model.decay": ("additive", "post_softmax"),
    "model.kernels": ("auto", "reference"),
    "model.dtype": ("float32", "bfloat16"),
    "model.matmul_precision": ("default", "high", "highest"),
    "data.on_error": ("stop", "skip"),
    "eval.mode": ("whole", "slide"),
    "train.loss_normalizer": ("all_pixels", "valid_pixels"),
}
POSITIVE = (
    "model.max_scores", "data.crop", "data.resize_base", "data.resize_ratio",
    "data.synthetic_size", "data.synthetic_train", "data.synthetic_validation",
    "optim.learning_rate", "optim.epsilon", "optim.poly_power",
    "train.steps", "train.batch_size", "train.accumulate", "train.log_every", "train.save_every",
    "train.eval_every", "train.keep_checkpoints", "train.ohem_min_kept",
    "eval.resize_target", "eval.multiple_of",
    "eval.window", "eval.stride", "eval.scales", "eval.batch_size",
)  # fmt: skip
NOT_NEGATIVE = (
    "model.decoder_channels", "data.workers", "optim.weight_decay", "optim.beta1", "optim.beta2",
    "optim.min_learning_rate", "optim.warmup_steps", "optim.warmup_ratio", "train.seed",
    "train.minutes", "train.class_weights", "train.ohem_threshold", "train.ema_decay",
    "train.max_bad_steps", "eval.pictures",
)  # fmt: skip
# With train.minutes, a 0 here is chosen to fit data and machine (segret_jax/training/sizing.py).
SIZED = (
    "data.crop", "data.resize_base", "eval.resize_target", "optim.learning_rate",
    "optim.warmup_steps", "train.steps", "train.batch_size", "train.eval_every",
)  # fmt: skip
ANY_LENGTH = {"train.class_weights": 1.0, "eval.scales": 1.0, "model.remat": 1}  # and an entry


def validate(config: Config) -> Config:
    """Return `config` if every value is possible; raise InputError naming the first that is not."""
    defaults, values = flatten(Config()), flatten(config)
    for key, value in values.items():
        _check_type(key, value, defaults[key])
    is_open = left_open(config)
    for key, value in values.items():
        if key in CHOICES and value not in CHOICES[key]:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(CHOICES[key])}")
        smallest = min(value, default=0) if isinstance(value, tuple) else value
        if key in is_open:
            continue
        if (key in POSITIVE and not smallest > 0) or (key in NOT_NEGATIVE and not smallest >= 0):
            bound = "positive" if key in POSITIVE else "0 or more"
            raise InputError(f"{key} is {value}; it must be {bound}")
    for key in (
        "optim.beta1", "optim.beta2", "model.drop_path", "train.ohem_threshold", "train.ema_decay",
    ):  # fmt: skip
        if flatten(config)[key] >= 1:
            raise InputError(f"{key} is {flatten(config)[key]}; it must be below 1")
    scales = config.eval.scales
    if min(scales) < 0.1 or max(scales) > 10 or len(set(scales)) < len(scales):
        raise InputError(f"eval.scales is {scales}; give different numbers from 0.1 to 10")
    if not set(config.model.remat) <= {1, 2, 3, 4}:
        raise InputError(f"model.remat is {config.model.remat}; give stages from 1 to 4")
    if config.train.batch_size % config.train.accumulate:
        raise InputError(
            f"train.accumulate is {config.train.accumulate}; "
            f"it must divide train.batch_size, {config.train.batch_size}"
        )
    low, high = config.data.resize_ratio
    if low > high:
        raise InputError(f"data.resize_ratio is ({low}, {high}); give (smallest, largest)")
    if any(s > w for s, w in zip(config.eval.stride, config.eval.window, strict=True)):
        raise InputError(
            f"eval.stride is {config.eval.stride}; "
            f"more than eval.window {config.eval.window} would leave pixels out"
        )
    if min(config.data.synthetic_size) < 32:
        raise InputError(f"data.synthetic_size is {config.data.synthetic_size}; at least (32, 32)")
    return config


def left_open(config: Config) -> tuple[str, ...]:
    """Return the settings that are to be chosen to fit data and machine."""
    if not config.train.minutes > 0:
        return ()
    values = flatten(config)
    return tuple(key for key in SIZED if values[key] in (0, (0, 0)))


def check_segmentation(model: ModelConfig) -> None:
    """Raise InputError for a classifier: what segments or trains to segment needs a decoder."""
    if model.task != "segmentation":
        raise InputError(
            f"this is the classifier rmt_{model.variant}, which does not segment: train with its "
            "encoder, by train.py --config.init_from=CHECKPOINT"
        )


def _check_type(key: str, value: Any, default: Any) -> None:
    if key in ANY_LENGTH:
        takes = "numbers separated by commas"
        fits = isinstance(value, tuple) and all(_fits(x, ANY_LENGTH[key]) for x in value)
    elif isinstance(default, tuple):
        takes = f"{len(default)} numbers"
        fits = isinstance(value, tuple) and len(value) == len(default)
        fits = fits and all(map(_fits, value, default))
    else:
        kind = type(default).__name__
        takes = "a finite number" if kind == "float" else f"a value of type {kind}"
        fits = _fits(value, default)
    if not fits:
        raise InputError(f"{key} is {value!r}; it takes {takes}, such as {default}")


def _fits(value: Any, default: Any) -> bool:
    if type(default) is float and type(value) in (int, float):
        return math.isfinite(value)
    return type(value) is type(default)


def flatten(config: Config) -> dict[str, Any]:
    """Return {"group.key": value} of every setting; those of no group are {"key": value}."""
    return _flatten(dataclasses.asdict(config))


def _flatten(groups: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for group, value in groups.items():
        grouped = isinstance(value, dict)
        settings |= {f"{group}.{k}": v for k, v in value.items()} if grouped else {group: value}
    return settings


def set_value(config: Config, key: str, value: Any) -> None:
    """Change the setting that `flatten` calls `key`."""
    group, _, name = key.rpartition(".")
    setattr(getattr(config, group) if group else config, name, value)


def save(config: Config, path: Path) -> None:
    """Write the resolved config as JSON; what was there stays whole if the disk is full."""
    write_whole(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load(path: Path) -> Config:
    """Read what `save` wrote; raise InputError if the file is not there or not a config."""
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"no config at {path}: is this a run's folder?") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not hold this version's config: {error}") from None


def from_dict(groups: dict[str, Any]) -> Config:
    """Build a Config from nested plain values (JSON lists become tuples)."""
    config = Config()
    for key, value in _flatten(groups).items():
        set_value(config, key, tuple(value) if isinstance(value, list) else value)
    return config
