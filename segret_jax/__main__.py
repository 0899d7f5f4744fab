"""`python -m segret_jax` is the command `segret`."""

from segret_jax.cli.main import run

if __name__ == "__main__":
    run()
