"""Segment a photograph with a trained model, and name its largest classes.

python examples/predict_a_photograph.py RUN PHOTOGRAPH
"""

import sys

import numpy as np

import segret_jax


def main(run: str, photograph: str) -> dict[str, float]:
    """Return the share of the pixels of each class that occurs, largest first."""
    model = segret_jax.load(run)
    label_map = model.predict(photograph).label_map
    classes, counts = np.unique(label_map, return_counts=True)
    order = np.argsort(-counts)
    names = model.classes.class_names
    return {names[classes[i]]: float(counts[i] / label_map.size) for i in order}


if __name__ == "__main__":
    for name, share in main(*sys.argv[1:3]).items():
        print(f"{share:6.1%}  {name}")
