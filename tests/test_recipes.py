"""The recipes of published models: against the specifications' tables, and what they say."""

import re
from typing import NamedTuple

import pytest

from segret_jax.config import Config, choose_family, flatten
from segret_jax.models.families import FAMILIES, get_family
from segret_jax.models.segman.settings import SegMANSettings
from segret_jax.models.segret.settings import SegRetSettings
from segret_jax.training.forecast import STATE_COPIES
from tests.test_configs import FILES, load


class Row(NamedTuple):
    """One recipe, and its published mIoU: single-scale and, of SegRet, multi-scale."""

    dataset: str
    learning_rate: float
    weight_decay: float
    norm_rules: bool
    poly_power: float
    warmup_steps: int
    batch_size: int
    steps: int
    crop: tuple[int, int]
    resize_base: tuple[int, int]
    eval_target: tuple[int, int]
    multiple_of: int
    published: str
    drop_path: float | None = None  # None: the variant's own
    eval_every: int = 8_000
    window: tuple[int, int] | None = None  # of a sliding window; its stride is 3/4 of it
    decoder_channels: int = 0


def segman_ade(drop_path: float, eval_every: int, published: str) -> Row:
    row = segman_cityscapes(drop_path, published, window=0)
    return row._replace(
        dataset="ade20k", batch_size=16, crop=(512, 512), resize_base=(2048, 512),
        eval_target=(2048, 512), eval_every=eval_every,
    )  # fmt: skip


def segman_coco(drop_path: float, published: str) -> Row:
    return segman_ade(drop_path, 4000, published)._replace(dataset="coco_stuff164k")


def segman_cityscapes(
    drop_path: float, published: str, window: int = 1024, channels: int = 0
) -> Row:
    return Row("cityscapes", 6e-5, 0.01, True, 1.0, 1500, 8, 160_000,
               (1024, 1024), (2048, 1024), (2048, 1024), 32, published, drop_path, 4000,
               (window, window) if window else None, channels)  # fmt: skip


# fmt: off
SEGRET = {
    "ade_tiny": Row("ade20k", 1e-4, 1e-4, True, 0.9, 0, 16, 160_000,
                    (512, 512), (2048, 512), (2048, 512), 32, "48.76 49.39"),
    "ade_small": Row("ade20k", 1e-4, 0.01, True, 0.9, 1500, 16, 160_000,
                     (512, 512), (2048, 512), (2048, 512), 32, "50.7 51.29"),
    "ade_base": Row("ade20k", 1e-4, 0.01, True, 0.9, 0, 16, 160_000,
                    (512, 512), (2048, 512), (2048, 512), 32, "51.63 52.13"),
    "ade_large": Row("ade20k", 1e-4, 0.01, True, 0.9, 0, 16, 160_000,
                     (640, 640), (2048, 640), (2048, 640), 32, "52.0 52.23"),
    "cityscapes_tiny": Row("cityscapes", 1e-4, 0.01, True, 0.9, 0, 8, 160_000,
                           (512, 1024), (4096, 1024), (2048, 1024), 1, "81.75 82.17"),
    "cityscapes_small": Row("cityscapes", 1e-4, 0.01, False, 1.0, 1500, 8, 160_000,
                            (512, 1024), (4096, 1024), (2048, 1024), 1, "82.93 83.52"),
    "cityscapes_base": Row("cityscapes", 1e-4, 0.01, False, 1.0, 1500, 8, 160_000,
                           (512, 1024), (4096, 1024), (2048, 1024), 1, "83.28 83.87"),
    "cityscapes_large": Row("cityscapes", 1e-4, 0.01, True, 0.9, 0, 8, 160_000,
                            (512, 1024), (4096, 1024), (2048, 1024), 1, "83.36 83.91"),
    "coco_stuff10k_tiny": Row("coco_stuff10k", 2e-4, 1e-4, True, 0.9, 1500, 16, 80_000,
                              (512, 512), (2048, 512), (2048, 512), 32, "42.22 43.32"),
    "coco_stuff10k_small": Row("coco_stuff10k", 1e-4, 0.01, True, 0.9, 0, 32, 60_000,
                               (512, 512), (2048, 512), (2048, 512), 32, "44.32 45.48"),
    "coco_stuff10k_base": Row("coco_stuff10k", 1e-4, 0.01, True, 0.9, 1500, 16, 80_000,
                              (512, 512), (2048, 512), (2048, 512), 32, "45.92 46.06"),
    "coco_stuff10k_large": Row("coco_stuff10k", 1e-4, 0.01, False, 0.9, 1500, 16, 80_000,
                               (512, 512), (2048, 512), (2048, 512), 32, "45.78 46.63"),
}
# Drop path of the scripts; of large, for which there is none, that of base.
SEGMAN = {
    "segman_tiny_ade": segman_ade(0.0, 4000, "43.0"),
    "segman_small_ade": segman_ade(0.15, 8000, "51.3"),
    "segman_base_ade": segman_ade(0.25, 8000, "52.6"),
    "segman_large_ade": segman_ade(0.25, 8000, "53.2"),
    "segman_tiny_cityscapes": segman_cityscapes(0.0, "80.3"),
    "segman_small_cityscapes": segman_cityscapes(0.2, "83.2", channels=152),
    "segman_base_cityscapes": segman_cityscapes(0.25, "83.8"),
    "segman_large_cityscapes": segman_cityscapes(0.25, "84.2", window=0),
    "segman_tiny_coco_stuff164k": segman_coco(0.0, "41.3"),
    "segman_small_coco_stuff164k": segman_coco(0.2, "47.5"),
    "segman_base_coco_stuff164k": segman_coco(0.2, "48.4"),
    "segman_large_coco_stuff164k": segman_coco(0.2, "48.8"),
}
# fmt: on
TABLE = SEGRET | SEGMAN
NAMES = {"segret": "SegRet", "segman": "SegMAN"}
NUM_CLASSES = {"ade20k": 150, "cityscapes": 19, "coco_stuff10k": 171, "coco_stuff164k": 171}
NUM_PARAMS = {  # in millions
    "segret_tiny": 13.5, "segret_small": 26.0, "segret_base": 53.0, "segret_large": 95.8,
    "segman_tiny": 6.4, "segman_small": 29.4, "segman_base": 51.8, "segman_large": 92.3,
}  # fmt: skip

every_recipe = pytest.mark.parametrize("name", TABLE)


@every_recipe
def test_recipe_is_the_row_of_the_specification(name: str) -> None:
    config, row = load(name), TABLE[name]
    family, variant = family_and_variant(name)
    model, evaluation = config.model, config.eval
    own = SegMANSettings(decoder_channels=row.decoder_channels)
    assert (model.family, model.variant) == (family, variant)
    assert model.settings == (SegRetSettings() if family == "segret" else own)
    assert (model.remat, model.dtype, model.matmul_precision) == ((), "float32", "default")
    assert config.data.resize_ratio == (0.5, 2.0)
    assert config.train.loss_normalizer == "all_pixels"
    optim = config.optim
    assert (optim.beta1, optim.beta2, optim.epsilon) == (0.9, 0.999, 1e-8)
    assert (optim.min_learning_rate, optim.warmup_ratio) == (0.0, 1e-6)
    drop_path = drop_path_of(config)
    assert (evaluation.scales, evaluation.flip) == ((1.0,), False)
    if evaluation.mode == "slide":
        assert evaluation.stride == tuple(side * 3 // 4 for side in evaluation.window)
    found = Row(
        dataset=config.data.dataset,
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        norm_rules=optim.norm_rules,
        poly_power=optim.poly_power,
        warmup_steps=optim.warmup_steps,
        batch_size=config.train.batch_size,
        steps=config.train.steps,
        crop=config.data.crop,
        resize_base=config.data.resize_base,
        eval_target=evaluation.resize_target,
        multiple_of=evaluation.multiple_of,
        published=row.published,
        drop_path=None if row.drop_path is None else drop_path,
        eval_every=config.train.eval_every,
        window=evaluation.window if evaluation.mode == "slide" else None,
        decoder_channels=row.decoder_channels,
    )
    assert found == row


def family_and_variant(name: str) -> tuple[str, str]:
    family, variant, *_ = name.split("_")
    return (family, variant) if family in FAMILIES else ("segret", name.rpartition("_")[2])


def drop_path_of(config: Config) -> float:
    own = get_family(config.model.family).variants[config.model.variant].drop_path
    return own if config.model.drop_path < 0 else config.model.drop_path


@every_recipe
def test_recipe_opens_with_what_it_is(name: str) -> None:
    source, row = FILES[name].read_text(), TABLE[name]
    family, variant = family_and_variant(name)
    single, *multi = row.published.split()
    model = load(name).model
    costs = get_family(family).load().costs
    per_pixel = costs.activation_bytes(model, NUM_CLASSES[row.dataset], on_cpu=False)
    h, w = row.crop
    for fact in (
        f"{NAMES[family]}-{variant} on ",
        f"segret train --config {name} --config.data.root=DIR ",
        f"mIoU {single} single-scale" + "".join(f", {score} multi-scale" for score in multi),
        "published, not reproduced here yet; needs ImageNet weights",
        f"{row.steps:,} steps, global batch {row.batch_size}.",
        f"{per_pixel * h * w / 1e9:.1f} GB per {h}\N{MULTIPLICATION SIGN}{w} image, beside "
        f"{4e6 * STATE_COPIES * NUM_PARAMS[f'{family}_{variant}'] / 1e9:.1f} GB for",
    ):
        assert fact in " ".join(source.split('"""')[1].split())


@every_recipe
def test_recipe_sets_only_what_differs_from_the_defaults(name: str) -> None:
    config, default = load(name), Config()
    choose_family(default.model, config.model.family)
    defaults = flatten(default)
    differing = [key for key, value in flatten(config).items() if value != defaults[key]]
    set_here = re.findall(r"^    config\.(\S+) = ", FILES[name].read_text(), re.MULTILINE)
    assert set_here == differing  # in the order of config.py, too


def test_every_variant_has_a_recipe() -> None:
    named = {family_and_variant(name) for name in TABLE}
    assert named == {(name, v) for name in NAMES for v in FAMILIES[name].variants}
