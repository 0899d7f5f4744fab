"""Saved configs: those of this version, and those from before models came in families."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from segret_jax import config as configs
from segret_jax.errors import InputError
from segret_jax.models.families import FAMILIES
from segret_jax.models.family import Family, Implementation
from segret_jax.settings import setting


@dataclass(slots=True, kw_only=True)
class OtherSettings:
    """Settings of a family, one with the name of a setting of every family."""

    kernels: str = setting("own")
    sizes: tuple[int, ...] = setting((1,), entry=1)


def load(folder: Path, **model: object) -> configs.ModelConfig:
    (folder / "config.json").write_text(json.dumps({"model": model}))
    return configs.load(folder / "config.json").model


def test_a_setting_of_every_family_is_not_taken_for_the_familys_own(tmp_path, monkeypatch):
    other = Family(settings=OtherSettings, variants={}, load=lambda: Implementation(build=object))
    monkeypatch.setitem(FAMILIES, "other", other)
    settings = {"kernels": "another", "sizes": [2, 3]}
    model = load(tmp_path, family="other", kernels="reference", settings=settings)
    assert model.kernels == "reference"
    assert model.settings == OtherSettings(kernels="another", sizes=(2, 3))
    assert load(tmp_path, family="other", kernels="reference").settings == OtherSettings()


def test_a_setting_of_the_family_was_once_beside_the_others(tmp_path):
    model = load(tmp_path, variant="small", rotary=True, remat=[1, 2])
    assert (model.variant, model.remat, model.settings.rotary) == ("small", (1, 2), True)
    with pytest.raises(InputError, match="does not hold a config of this version"):
        load(tmp_path, coined=True)
