"""Settings of a model in one call, those of its family among those of every model."""

import dataclasses
from typing import Any

from segret_jax.config import ModelConfig
from segret_jax.models.families import get_family


def segret(**options: Any) -> ModelConfig:
    return _settings_of("segret", options)


def segman(**options: Any) -> ModelConfig:
    return _settings_of("segman", options)


def _settings_of(family: str, options: dict[str, Any]) -> ModelConfig:
    kind = get_family(family).settings
    names = {field.name for field in dataclasses.fields(kind)}
    own = {name: value for name, value in options.items() if name in names}
    shared = {name: value for name, value in options.items() if name not in names}
    return ModelConfig(family=family, settings=kind(**own), **shared)
