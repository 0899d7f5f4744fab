"""Environment variables that would end a run with a traceback, at once or hours later."""

import os
import sys

from segret_jax.errors import InputError

# JAX's variables that this package does not work under, and the values that do no harm.
# 64 bits: a state that cannot be saved. The others: exceptions from within the model.
UNSAFE = {
    "JAX_ENABLE_X64": ("", "0", "false", "off", "no"),
    "JAX_DISABLE_JIT": ("", "0", "false", "off", "no"),
    "JAX_NUMPY_DTYPE_PROMOTION": ("", "standard"),
    "JAX_TRANSFER_GUARD": ("", "allow", "log", "log_explicit"),
}


def drop_unsafe_settings() -> None:
    """Remove the variables of `UNSAFE` from the environment, and say so.

    Raises InputError if JAX has been imported, and so has read them.
    """
    for name, harmless in UNSAFE.items():
        value = os.environ.get(name, "")
        if value.strip().lower() in harmless:
            continue
        if "jax" in sys.modules:
            raise InputError(f"{name}={value} is set, under which this program fails: unset {name}")
        del os.environ[name]
        print(f"{name}={value} is ignored: this program does not work under it", file=sys.stderr)
