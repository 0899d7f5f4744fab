"""What only a GPU can test: python -m pytest -m gpu."""

import jax
import pytest


@pytest.fixture(autouse=True)
def gpu() -> jax.Device:
    """Skip where there is no NVIDIA GPU; return it elsewhere."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU")
    return jax.devices()[0]
