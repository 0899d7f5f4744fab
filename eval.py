"""Score a checkpoint: python eval.py is `segret eval`."""

from segret_jax.cli import eval, program

if __name__ == "__main__":
    program.run(eval.main, computes=True)
