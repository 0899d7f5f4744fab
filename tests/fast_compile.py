"""Compiling for tests, whose few steps take less time than optimizing them would."""

from typing import Any

import jax
from jax._src import compiler

# Two thirds of the time that a train step takes to compile which is not to be optimized. XLA
# refuses an option that it does not know, so they are for the pinned version alone.
OPTIONS = {"xla_cpu_use_fusion_emitters": "False", "xla_cpu_parallel_codegen_split_count": "1"}


def compile_fast() -> None:
    """Compile what follows with few optimizations, while jax_disable_most_optimizations is True."""
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ >= (0, 11):
        return
    usual = compiler.get_compile_options

    def get_compile_options(*args: Any, **settings: Any) -> Any:
        options = usual(*args, **settings)
        if jax.config.read("jax_disable_most_optimizations"):
            options.env_option_overrides = [*options.env_option_overrides, *OPTIONS.items()]
        return options

    compiler.get_compile_options = get_compile_options
