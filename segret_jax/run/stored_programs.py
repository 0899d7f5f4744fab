"""Compiled programs kept on the disk, which a later process runs without tracing them again.

JAX's own cache spares the compilation, but its key is the traced and lowered program: most of a
second of Python at each start. The key of these files is all that the program is made from: the
code of this package, the function with its constants, such as the graph of a network, the versions,
the settings of JAX, the devices, and the shapes of the arguments. What it can't see is code that
was changed in memory; so only commands that run none of the user's own keep programs.

They are of CPUs alone, where a start is short enough for that second to count. The files lie in
JAX's compilation cache, and are as safe as those beside them: whoever may write there can run code.
"""

import functools
import hashlib
import os
import pickle
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import psutil
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from segret_jax import __version__
from segret_jax.digests import PACKAGE, code_digest, parts_digest
from segret_jax.files import atomic_write
from segret_jax.run.compilation import processor

MAX_FILES = 64  # beyond it, those that were not used for the longest time are deleted
SUFFIX = ".program"
ENABLED = "jax_enable_compilation_cache"

_lock = threading.Lock()  # of JAX's setting `ENABLED`


class StoredProgram:
    """A jitted function that reads its compiled programs from the disk, or keeps them there."""

    def __init__(self, jitted: Any, function: Callable, mesh: Mesh):
        """Wrap a function.

        Args:
            jitted: What `jax.jit` made of the function for the devices of the mesh.
            function: What it computes. If pickle cannot tell its constants, nothing is kept.
            mesh: The devices.
        """
        self.lower = jitted.lower
        self._function, self._mesh = function, mesh
        self._programs: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Call the program for arguments of these shapes, which are placed as it wants them."""
        leaves, structure = jax.tree.flatten((arguments, {}))
        signature = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if signature not in self._programs:
            self._programs[signature] = self._load(arguments, structure, signature)
        return self._programs[signature](*arguments)

    def _load(self, arguments: Any, structure: Any, signature: Any) -> Any:
        """Read a program, or compile and write it; faults of the disk cost only time."""
        file = self._file(signature)
        if file is not None:
            with suppress(Exception):  # missing, cut off, or refused by the device
                content, results = pickle.loads(_verified(file.read_bytes()))
                devices = [*self._mesh.devices.flat]
                program = serialize_executable.deserialize_and_load(
                    content, structure, results, execution_devices=devices
                )
                with suppress(OSError):  # a folder of others
                    os.utime(file)
                return program
        if file is None or not _is_writable(file.parent):
            return self.lower(*arguments).compile()
        with _without_cache():
            program = self.lower(*arguments).compile()
        with suppress(Exception):  # such as a full disk
            content, _, results = serialize_executable.serialize(program)
            content = pickle.dumps((content, results))
            atomic_write(file, hashlib.sha256(content).digest() + content)
            _delete_oldest(file.parent)
        return program

    def _file(self, signature: Any) -> Path | None:
        """Return the file of the program for these arguments; None if none is kept."""
        settings: Any = jax.config  # whose type does not name them
        folder, devices = settings.jax_compilation_cache_dir, [*self._mesh.devices.flat]
        is_local = folder and "://" not in folder
        if not is_local or not getattr(settings, ENABLED) or devices[0].platform != "cpu":
            return None
        try:
            kinds = [(device.device_kind, device.client.platform_version) for device in devices]
            parts = *_environment(), kinds, dict(self._mesh.shape), *signature
            function = pickle.dumps(self._function)
            key = parts_digest([function, *(repr(part).encode() for part in parts)])
        except Exception:  # a function or a folder that does not tell
            return None
        return Path(folder) / f"{key}{SUFFIX}"


def _environment() -> tuple[Any, ...]:
    """Return what a program depends on beside its function, its arguments and its devices.

    Raises:
        ValueError: It cannot be told.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and not flags.startswith("-"):
        raise ValueError("the flags are in a file")
    modules = jax, jaxlib, flax, np
    versions = __version__, platform.python_version(), *(m.__version__ for m in modules)
    # `getattr` sees a setting of this thread, such as `jax.default_matmul_precision`.
    settings = {k: getattr(jax.config, k, v) for k, v in sorted(jax.config.values.items())}
    cores = len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count()
    return _code(), versions, settings, flags, processor(), cores  # XLA divides loops by cores


@functools.cache
def _code() -> str:
    """Return the hash of the package, which must not be younger than this process."""
    youngest = max(file.stat().st_mtime for file in PACKAGE.rglob("*.py"))
    if youngest > psutil.Process().create_time():
        raise ValueError("this process may run other code than the disk has")
    return code_digest(PACKAGE)


@contextmanager
def _without_cache() -> Iterator[None]:
    """Compile without JAX's cache: what comes from there, XLA serializes without its code."""
    with _lock:
        jax.config.update(ENABLED, False)
        compilation_cache.reset_cache()  # which JAX reads once, and remembers
        try:
            yield
        finally:
            jax.config.update(ENABLED, True)
            compilation_cache.reset_cache()


def _is_writable(folder: Path) -> bool:
    """Return whether files can be written there; make the folder if it is missing."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def _verified(content: bytes) -> bytes:
    """Return a file's program, which follows its hash; ValueError if it is damaged."""
    known, program = content[:32], content[32:]
    if hashlib.sha256(program).digest() != known:
        raise ValueError("damaged")
    return program


def _delete_oldest(folder: Path) -> None:
    """Delete the files beyond `MAX_FILES`; those of a write that was killed count, too."""
    files = sorted(folder.glob(f"*{SUFFIX}*"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MAX_FILES]:
        file.unlink()
