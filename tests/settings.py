"""Settings of SegRet in one call, its own among those of every model."""

import dataclasses
from typing import Any

from segret_jax.config import ModelConfig
from segret_jax.models.segret.settings import SegRetSettings

OWN = {field.name for field in dataclasses.fields(SegRetSettings)}


def segret(**options: Any) -> ModelConfig:
    own = {name: value for name, value in options.items() if name in OWN}
    shared = {name: value for name, value in options.items() if name not in OWN}
    return ModelConfig(settings=SegRetSettings(**own), **shared)
