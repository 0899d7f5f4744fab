"""The images that the page offers to start with."""

from pathlib import Path

from segret_jax.data.names import SYNTHETIC
from segret_jax.data.synthetic import SyntheticSource
from segret_jax.visualize.pictures import encode_jpeg

FOLDER = Path(__file__).parent / "samples"
SEED = 2  # not one of `data.pipeline.SPLIT_SEEDS`: scenes that no run has seen
SCENES = (0, 2, 3)
SIZE = (384, 480)  # height and width
QUALITY = 92  # of JPEG


def sample_images(dataset: str) -> dict[str, bytes]:
    """Return JPEG files by name for a model of the classes of `dataset`.

    They are generated scenes for a model of generated scenes, and street photographs otherwise.
    """
    if dataset != SYNTHETIC:
        return {file.name: file.read_bytes() for file in sorted(FOLDER.glob("*.jpg"))}
    source = SyntheticSource(seed=SEED, num_images=max(SCENES) + 1, size=SIZE)
    return {
        f"{source.name(i)}.jpg": encode_jpeg(source[i]["image"], quality=QUALITY) for i in SCENES
    }
