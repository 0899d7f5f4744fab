"""Files of a family beside SegRet, with settings and names of its own."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segret_jax.config import ModelConfig
from segret_jax.convert.importing import import_tensors
from segret_jax.convert.recognize import identify
from segret_jax.convert.tensors import TensorFile, strip_prefixes
from segret_jax.errors import InputError
from segret_jax.models.families import FAMILIES
from segret_jax.models.family import Family
from segret_jax.models.segret import torch_format
from segret_jax.settings import setting
from tests.convert.models import random_tensors
from tests.settings import segret

OTHER = {"trunk.layers.0.blocks.0.scan.weight": np.zeros(2), "last.weight": np.zeros((7, 2))}


@dataclass(slots=True, kw_only=True)
class OtherSettings:
    groups: int = setting(1)
    width: int = setting(16)


def infer(
    tensors: Mapping[str, np.ndarray], model: ModelConfig, given: Collection[str]
) -> dict[str, Any] | None:
    if not any("scan" in name for name in tensors):
        return None
    width = model.settings.width if "settings.width" in given else 32
    return {"variant": "big", "task": "segmentation", "groups": 3, "width": width}


@pytest.fixture(autouse=True)
def _other(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        "infer": infer,
        "class_layers": {"segmentation": ("last",)},
        "encoder_block": re.compile(r"trunk\.layers\.\d\.blocks\.\d\.|old_trunk\.\d\."),
    }
    form = SimpleNamespace(**vars(torch_format) | own)
    load: Any = lambda: SimpleNamespace(torch=form)  # noqa: E731
    family = Family(settings=OtherSettings, variants={"big": None}, load=load)
    monkeypatch.setitem(FAMILIES, "other", family)


def other(**settings: Any) -> ModelConfig:
    return ModelConfig(family="other", variant="big", settings=OtherSettings(**settings))


def test_each_family_is_asked_with_its_own_settings() -> None:
    model = segret(rotary=True, dtype="bfloat16")
    found = identify(OTHER, model)
    assert found.num_classes == 7
    assert found.model == replace(other(groups=3, width=32), dtype="bfloat16")
    assert model == segret(rotary=True, dtype="bfloat16")


def test_settings_that_the_user_gave_stay() -> None:
    model = other(groups=2, width=64)
    given = ["family", "settings.width"]
    assert identify(OTHER, model, given).model.settings == OtherSettings(groups=3, width=64)
    with pytest.raises(InputError, match="groups is set to 2, but the file holds 3"):
        identify(OTHER, model, ["settings.groups"])
    assert model == other(groups=2, width=64)


@pytest.mark.parametrize(
    ("model", "given", "tensors", "families"),
    [
        (ModelConfig(), [], {"stem": np.zeros(1)}, "segret or segman or other"),
        (other(), ["variant"], {"stem": np.zeros(1)}, "other or segret or segman"),
        (ModelConfig(), ["family"], OTHER, "segret"),
        (ModelConfig(), ["settings.rotary"], OTHER, "segret"),
        (other(), ["family"], {"stem": np.zeros(1)}, "other"),
    ],
)
def test_the_error_names_the_families_that_were_tried(model, given, tensors, families) -> None:
    with pytest.raises(InputError, match=rf"is no model of {families}: its names begin with "):
        identify(tensors, model, given)


@pytest.mark.parametrize(
    "names", [list(OTHER), ["old_trunk.0.weight"], ["backbone.layers.0.blocks.0.pos.conv.bias"]]
)
@pytest.mark.parametrize("prefix", ["", "net.", "segmentor.net."])
def test_prefixes_end_where_the_names_of_a_family_begin(names: list[str], prefix: str) -> None:
    tensors = {prefix + name: np.zeros(1) for name in [*names, "last.bias"]}
    file = strip_prefixes("a", TensorFile(tensors=tensors, format="npz", metadata={}))
    assert (list(file.tensors), file.prefix) == ([*names, "last.bias"], prefix)


@pytest.mark.usefixtures("mini")
def test_the_values_of_the_familys_constants_are_compared(monkeypatch) -> None:
    tensors = random_tensors()
    tensors["backbone.layers.2.Relpos.decay"] *= 2
    with pytest.raises(InputError, match=r"Relpos\.decay begins"):
        import_tensors(tensors, ModelConfig())
    monkeypatch.setattr(torch_format, "constants", ())
    assert import_tensors(tensors, ModelConfig()).unused["backbone.layers.2.Relpos.decay"].any()
