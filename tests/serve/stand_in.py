"""A model that computes nothing, and a server with it: `python -m tests.serve.stand_in PORT`."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from segret_jax.cli import program
from segret_jax.data.class_table import ClassTable, load_class_table
from segret_jax.prediction.segmentation import Segmentation
from segret_jax.serve import server, uploads
from segret_jax.serve.app import Served, create_app
from segret_jax.serve.limits import Limits

TABLE: ClassTable = load_class_table("camvid")


class Constant:
    """Scores of which every pixel has the same confidence."""

    def __init__(self, size: tuple[int, int]):
        self._size = size

    def confidence(self) -> Sequence[np.ndarray]:
        return [np.full(self._size, 0.75, np.float16)]

    def probabilities(self) -> Sequence[np.ndarray]:
        return [np.zeros((*self._size, TABLE.num_classes), np.float16)]


def segment(image: np.ndarray, seconds: float = 0.0) -> Segmentation:
    """Give the upper half class 0, sky, the lower half class 3, road, and a square class 8, car."""
    time.sleep(seconds)
    height, width = image.shape[:2]
    label = np.zeros((height, width), np.uint8)
    label[height // 2 :] = 3
    label[height // 2 : 3 * height // 4, : width // 4] = 8
    return Segmentation(image, TABLE, label, Constant((height, width)))


def served(seconds: float = 0.0, name: str = "stand_in") -> Served:
    return Served(name=name, classes=TABLE, segment=lambda image: segment(image, seconds))


def main(argv: list[str]) -> None:
    """Serve at the port `argv[0]`; a photograph takes `argv[1]` seconds."""
    listening = server.listen("127.0.0.1", int(argv[0]))
    uploads.refuse_bombs()
    limits: dict[str, Any] = {}
    for option in argv[2:]:
        name, _, value = option.partition("=")
        limits[name] = float(value) if name == "upload_seconds" else int(value)
    app = create_app(served(float(argv[1])), Limits(**limits), hosts=server.LOCAL_NAMES)
    print(server.address(listening), flush=True)
    server.run(app, listening)


if __name__ == "__main__":
    program.run(main)
