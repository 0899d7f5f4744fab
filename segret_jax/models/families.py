"""The model families, by name. Free of JAX."""

from segret_jax.errors import unknown_name
from segret_jax.models import segman, segret
from segret_jax.models.family import Family

FAMILIES: dict[str, Family] = {"segret": segret.FAMILY, "segman": segman.FAMILY}


def get_family(name: str) -> Family:
    """Return a family; raise InputError for an unknown name."""
    if name not in FAMILIES:
        raise unknown_name("model.family", name, FAMILIES)
    return FAMILIES[name]
