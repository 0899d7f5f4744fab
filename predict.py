"""Segment photographs: python predict.py is `segret predict`."""

from segret_jax.cli import predict, program

if __name__ == "__main__":
    program.run(predict.main, computes=True)
