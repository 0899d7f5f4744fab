"""Train the demonstration: a small model on generated scenes."""

from segret_jax.cli import train


def main(argv: list[str]) -> None:
    """Train the config `demo`, in runs/demo unless `argv` says otherwise."""
    train.main(argv, demo=__doc__)
