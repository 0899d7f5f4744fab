"""Compiled programs kept on the disk, which a later process runs without tracing them again.

JAX's own cache spares the compilation, but its key is the traced and lowered program: for SegRet a
second and more of Python at each start. The key of these files is all that the program is made
from: the code of this package, the function with its constants, such as the graph of a network, the
versions, the settings of JAX, the devices, and the shapes of the arguments. What it can't see is
code that was changed in memory; so only commands that run none of the user's own keep programs.

The files lie in JAX's compilation cache, and are as safe as those beside them: whoever may write
there can run code.
"""

import functools
import hashlib
import os
import pickle
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from segret_jax.digests import PACKAGE, code_digest, parts_digest
from segret_jax.files import atomic_write
from segret_jax.run.compilation import processor

MOST = 64  # files; the ones that were not used for the longest time are deleted
SUFFIX = ".program"
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


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
        if file is None:
            return self.lower(*arguments).compile()
        with suppress(Exception):  # missing, cut off, or refused by the device
            content, results = pickle.loads(_checked(file.read_bytes()))
            os.utime(file)
            return serialize_executable.deserialize_and_load(
                content, structure, results, execution_devices=[*self._mesh.devices.flat]
            )
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
        folder: Any = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        try:
            function = pickle.dumps(self._function)
        except (pickle.PicklingError, AttributeError, TypeError):
            return None
        devices = [(d.device_kind, d.client.platform_version) for d in self._mesh.devices.flat]
        parts = *_environment(), devices, dict(self._mesh.shape), *signature
        key = parts_digest([function, *(repr(part).encode() for part in parts)])
        return Path(folder) / f"{key}{SUFFIX}" if folder else None


def _environment() -> tuple[Any, ...]:
    """Return what a program depends on beside its function, its arguments and its devices."""
    versions = platform.python_version(), *(m.__version__ for m in (jax, jaxlib, flax, np))
    # `getattr` sees a setting of this thread, such as `jax.default_matmul_precision`.
    settings = {k: getattr(jax.config, k, v) for k, v in sorted(jax.config.values.items())}
    flags = [os.environ.get(name, "") for name in FLAGS]
    return _code(), versions, settings, flags, processor()


@functools.cache
def _code() -> str:
    return code_digest(PACKAGE)


@contextmanager
def _without_cache() -> Iterator[None]:
    """Compile without JAX's cache: what comes from there, XLA serializes without its code."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    compilation_cache.reset_cache()  # which JAX reads once, and remembers
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def _checked(content: bytes) -> bytes:
    """Return a file's program, which follows its hash; ValueError if it is damaged."""
    known, program = content[:32], content[32:]
    if hashlib.sha256(program).digest() != known:
        raise ValueError("damaged")
    return program


def _delete_oldest(folder: Path) -> None:
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MOST]:
        file.unlink()
