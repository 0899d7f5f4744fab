"""Cache compiled programs on the disk, so that only the first start compiles them."""

import os
import platform
import re
from hashlib import sha256
from pathlib import Path

import jax

from segret_jax.errors import InputError

CACHE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable: another folder, or none if empty


def use_cache() -> None:
    """Cache compiled programs in a folder of the user, unless JAX's variable names another or none.

    The folder is ~/.cache/segret_jax (or in XDG_CACHE_HOME), with a subfolder for each kind of
    processor: code compiled for one may not run on another that shares the home folder. Where it
    cannot be created, nothing is cached.

    Raises:
        InputError: JAX finds no device of the platform that it is asked for.
    """
    _check_devices()
    if CACHE in os.environ:
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "segret_jax" / f"{platform.machine()}_{_processor()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _check_devices() -> None:
    """Raise InputError if JAX finds no device of the platform that it is asked for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError without words for "cuda"
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = (str(error).splitlines() or ["no such device"])[0]
        raise InputError(
            f"JAX finds no device for JAX_PLATFORMS={asked} ({reason}): unset JAX_PLATFORMS, or "
            'install the support for that device, such as pip install "jax[cuda13]"'
        ) from error


def _processor() -> str:
    """Return a hash of the features of this machine's processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "any"
    features = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    return sha256(features[0].encode() if features else b"").hexdigest()[:8]
