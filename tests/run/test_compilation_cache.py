"""Compiled programs are kept for the next start, where the user or JAX says."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import jax, jax.numpy as jnp
from segret_jax.run import compilation
compilation.use_cache()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))
print(jax.config.jax_compilation_cache_dir)
"""


def folder_used(**environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=inherited | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_programs_are_cached_in_the_user_s_cache_folder(tmp_path):
    folder = Path(folder_used(XDG_CACHE_HOME=str(tmp_path)))
    assert folder.parent == tmp_path / "segret_jax"
    assert list(folder.glob("jit__lambda*-cache"))
    folder = Path(folder_used(HOME=str(tmp_path), XDG_CACHE_HOME=""))
    assert folder.parent == tmp_path / ".cache" / "segret_jax"


def test_another_folder_or_none_is_respected(tmp_path):
    assert folder_used(JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == str(tmp_path)
    assert folder_used(JAX_COMPILATION_CACHE_DIR="") in ("", "None")


def test_without_a_cache_folder_nothing_is_cached(tmp_path):
    (tmp_path / "file").touch()
    assert folder_used(XDG_CACHE_HOME=str(tmp_path / "file")) == "None"
