"""Compiled programs: cached on the disk, and how long a compilation may take."""

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from segret_jax import __version__
from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.files import atomic_write
from segret_jax.parallel import processes
from segret_jax.settings import flatten, rules

CACHE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable: another folder, or none if empty
# Measured on a few CPU cores: tiny in half a minute, base in up to two (docs/performance.md).
USUAL = "usually 0:30 to 2:00"
RECORD = "segret_jax_compile_times.json"  # in JAX's compilation cache: both go together
CACHE_HIT = "/jax/compilation_cache/cache_hits"
CACHE_MISS = "/jax/compilation_cache/cache_misses"
LEAST = "jax_persistent_cache_min_compile_time_secs"  # JAX's default is a second


def use_cache() -> None:
    """Cache compiled programs in a folder of the user, unless JAX's variable names another or none.

    The folder is ~/.cache/segret_jax (or in XDG_CACHE_HOME), with a subfolder for each kind of
    processor: code compiled for one may not run on another that shares the home folder. Where it
    cannot be created, nothing is cached.

    Raises:
        InputError: JAX finds no device of the platform that it is asked for.
    """
    _check_devices()
    if LEAST.upper() not in os.environ:  # the small programs of a start add up
        jax.config.update(LEAST, 0)
    if CACHE in os.environ:
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "segret_jax" / f"{platform.machine()}_{processor()}"
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


def processor() -> str:
    """Return a hash of the features of this machine's processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "any"
    features = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    return sha256(features[0].encode() if features else b"").hexdigest()[:8]


@contextmanager
def expected_compilation(config: Config, mesh: Mesh) -> Iterator[str]:
    """Yield a text on how long the block's compilation may take, and record how long it took.

    Whether JAX will find the program in its cache cannot be known beforehand: the code may have
    changed. Faults of the record, such as a full disk, never end a run.
    """
    settings: Any = jax.config  # whose type does not name them
    folder, key, events = settings.jax_compilation_cache_dir, _key(config, mesh), set()

    def listen(event: str, **_: Any) -> None:
        events.add(event)

    known = _read(Path(folder) / RECORD) if folder else {}
    jax.monitoring.register_event_listener(listen)
    begun = time.monotonic()
    try:
        yield _describe(known.get(key)) if folder else USUAL
    finally:
        jax.monitoring.unregister_event_listener(listen)
    if folder and processes.is_primary():
        # Small programs beside the large one may be cached without it.
        is_cached = CACHE_HIT in events and CACHE_MISS not in events
        if is_cached and key in known:
            return
        known[key] = {"seconds": time.monotonic() - begun}
        with suppress(Exception):
            atomic_write(Path(folder) / RECORD, json.dumps(known))


def _key(config: Config, mesh: Mesh) -> str:
    """Return a short name of what the compiled step depends on."""
    rule, groups = rules(config), ("model.", "train.", "optim.")
    settings = {
        k: v for k, v in flatten(config).items() if k.startswith(groups) and rule[k].compiled
    }
    device = mesh.devices.flat[0].device_kind
    versions = jax.__version__, __version__
    parts = [settings, config.data.dataset, config.data.crop, dict(mesh.shape), device, versions]
    return sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    with suppress(Exception):
        return dict(json.loads(file.read_text(encoding="utf-8")))
    return {}


def _describe(record: Any) -> str:
    try:
        seconds = int(record["seconds"])
    except (TypeError, KeyError, ValueError):
        return f"first time here, {USUAL}"
    return f"{seconds // 60}:{seconds % 60:02d} the last time; seconds if cached"
