"""Train a model: python train.py is `segret train`."""

from segret_jax.cli import program, train

if __name__ == "__main__":
    program.run(train.main, computes=True)
