"""Every file in configs/: against a snapshot, and the model itself (recipes: test_recipes).

After a change that is meant, rewrite the snapshot and read its diff:

    python -m tests.test_configs
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from segret_jax import config as configs
from segret_jax.cli.arguments import load_config_file
from segret_jax.config import Config, flatten, set_value, validate
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.models.factory import abstract
from segret_jax.models.forward import forward
from segret_jax.models.retention.decay import Decay
from segret_jax.settings import rules

FOLDER = Path(__file__).parent.parent / "configs"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.py"))}
SNAPSHOT = Path(__file__).with_name("config_snapshot.json")
UPDATE = "if that is meant, run `python -m tests.test_configs` and read the snapshot's diff"


every_config = pytest.mark.parametrize("name", FILES)


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
        # Models of 30 blocks and more take seconds to trace.
        pytest.param(name, marks=[pytest.mark.slow] * bool({"base", "large"} & {*name.split("_")}))
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


def test_choices_are_the_names_that_the_model_knows() -> None:
    assert rules(Config())["model.settings.decay"].choices == tuple(Decay)


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
