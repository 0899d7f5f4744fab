"""Every file in configs/: against the specification's table, a snapshot, and the model itself.

After a change that is meant, rewrite the snapshot and read its diff:

    python -m tests.test_configs
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from segret_jax import config as configs
from segret_jax.cli.arguments import load_config_file
from segret_jax.config import Config, ModelConfig, flatten, set_value, validate
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.models.factory import abstract
from segret_jax.models.forward import forward
from segret_jax.models.retention.decay import Decay
from segret_jax.models.segret.variants import VARIANTS
from segret_jax.settings import rules

FOLDER = Path(__file__).parent.parent / "configs"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.py"))}
SNAPSHOT = Path(__file__).with_name("config_snapshot.json")
UPDATE = "if that is meant, run `python -m tests.test_configs` and read the snapshot's diff"


class Row(NamedTuple):
    """One recipe of the specification's table (section 5), and its published mIoU (section 7)."""

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
    published: str  # single-scale, multi-scale


# fmt: off
TABLE = {
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
# fmt: on

every_config = pytest.mark.parametrize("name", FILES)
every_recipe = pytest.mark.parametrize("name", TABLE)


def load(name: str) -> Config:
    return validate(load_config_file(str(FILES[name])))


def resolved(name: str) -> dict[str, Any]:
    """Return all settings of a config as JSON gives them back: tuples are lists."""
    return json.loads(json.dumps(flatten(load(name))))


@every_config
def test_saved_config_is_read_back_equal(name: str, tmp_path: Path) -> None:
    config = load(name)
    configs.save(config, tmp_path / "config.json")
    assert configs.load(tmp_path / "config.json") == config


@every_config
def test_resolved_config_matches_the_snapshot(name: str) -> None:
    committed = json.loads(SNAPSHOT.read_text()).get(name)
    assert committed is not None, f"configs/{name}.py is not in the snapshot; {UPDATE}"
    now = resolved(name)
    changes = [
        f"{key}: {committed.get(key, 'absent')} → {now.get(key, 'absent')}"
        for key in sorted(committed.keys() | now.keys())
        if (key in committed, committed.get(key)) != (key in now, now.get(key))
    ]
    assert not changes, f"configs/{name}.py resolves to other values: {changes}; {UPDATE}"


def test_snapshot_holds_no_config_that_is_gone() -> None:
    gone = json.loads(SNAPSHOT.read_text()).keys() - FILES.keys()
    assert not gone, f"the snapshot holds {sorted(gone)}, not in configs/; {UPDATE}"


@pytest.mark.parametrize(
    "name",
    [
        # Models of 45 blocks take seconds to trace.
        pytest.param(name, marks=pytest.mark.slow) if name.endswith(("base", "large")) else name
        for name in FILES
        if name != "own"  # without a crop yet
    ],
)
def test_model_gives_logits_of_its_stride_at_the_crop(name: str) -> None:
    config = load(name)
    num_classes = class_table(config.data).num_classes
    bundle = abstract(config.model, num_classes)
    stride = nnx.merge(bundle.graph, *bundle.variables).stride
    image = jax.ShapeDtypeStruct((1, *config.data.crop, 3), jnp.float32)
    logits = jax.eval_shape(lambda *x: forward(bundle.graph, *x), bundle.variables, image)
    h, w = (math.ceil(side / stride) for side in config.data.crop)
    assert logits.shape == (1, h, w, num_classes)


@every_recipe
def test_recipe_is_the_row_of_the_specification(name: str) -> None:
    config, row = load(name), TABLE[name]
    assert config.model == ModelConfig(variant=name.rpartition("_")[2])
    assert config.data.resize_ratio == (0.5, 2.0)
    assert config.train.loss_normalizer == "all_pixels"
    optim = config.optim
    assert (optim.beta1, optim.beta2, optim.epsilon) == (0.9, 0.999, 1e-8)
    assert (optim.min_learning_rate, optim.warmup_ratio) == (0.0, 1e-6)
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
        eval_target=config.eval.resize_target,
        multiple_of=config.eval.multiple_of,
        published=row.published,
    )
    assert found == row


@every_recipe
def test_recipe_opens_with_what_it_is(name: str) -> None:
    source, row = FILES[name].read_text(), TABLE[name]
    docstring = source.split('"""')[1]
    single, multi = row.published.split()
    for fact in (
        f"SegRet-{name.rpartition('_')[2]} on ",
        f"segret train --config {name} --config.data.root=DIR\n",
        f"mIoU {single} single-scale, {multi} multi-scale",
        "published, not reproduced here yet; needs ImageNet weights",
        f"{row.steps:,} steps, global batch {row.batch_size}.",
        f"GB per {row.crop[0]}\N{MULTIPLICATION SIGN}{row.crop[1]} image",
    ):
        assert fact in docstring


@every_recipe
def test_recipe_sets_only_what_differs_from_the_defaults(name: str) -> None:
    defaults = flatten(Config())
    differing = [key for key, value in flatten(load(name)).items() if value != defaults[key]]
    set_here = re.findall(r"^    config\.(\S+) = ", FILES[name].read_text(), re.MULTILINE)
    assert set_here == differing  # in the order of config.py, too


def test_choices_are_the_names_that_the_model_knows() -> None:
    assert rules(Config())["model.settings.decay"].choices == tuple(Decay)
    assert {name.rpartition("_")[2] for name in TABLE} == set(VARIANTS)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.crop", (512,), "data.crop is (512,); it takes 2 numbers, such as (512, 512)"),
        ("data.crop", 256, "data.crop is 256; it takes 2 numbers, such as (512, 512)"),
        ("data.crop", (64.5, 64), "data.crop is (64.5, 64); it takes 2 numbers"),
        ("data.crop", (0, 512), "data.crop is (0, 512); it must be positive"),
        ("data.crop", (512, -1), "data.crop is (512, -1); it must be positive"),
        ("data.resize_ratio", (2.0, 0.5), "data.resize_ratio is (2.0, 0.5); give (smallest,"),
        ("eval.resize_target", (1, 2, 3), "eval.resize_target is (1, 2, 3); it takes 2 numbers"),
        ("train.steps", 0, "train.steps is 0; it must be positive"),
        (
            "optim.learning_rate",
            float("nan"),
            "optim.learning_rate is nan; it takes a finite number",
        ),
        ("optim.weight_decay", -0.1, "optim.weight_decay is -0.1; it must be 0 or more"),
        ("model.drop_path", 1.0, "model.drop_path is 1.0; it must be below 1"),
        ("model.variant", "huge", "model.variant is 'huge'; choose one of tiny, small,"),
        (
            "model.settings.decay",
            "none",
            "model.settings.decay is 'none'; choose one of additive, post_softmax",
        ),
    ],
)
def test_an_impossible_value_is_rejected_by_name(key: str, value: Any, message: str) -> None:
    config = Config()
    set_value(config, key, value)
    with pytest.raises(InputError, match="^" + re.escape(message)):
        validate(config)


if __name__ == "__main__":
    try:
        SNAPSHOT.write_text(json.dumps({name: resolved(name) for name in FILES}, indent=1) + "\n")
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"wrote {len(FILES)} configs to {SNAPSHOT}")
