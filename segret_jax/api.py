"""A model with its weights as one object, for use from Python.

model = segret_jax.load("runs/camvid_tiny_cpu")
result = model.predict("photograph.jpg")
result.label_map  # [H, W] class ids
result.overlay().save("overlay.png")
model.save_pretrained("camvid_tiny")  # a folder to share, which `load` reads
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, overload

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt8
from PIL import Image, ImageFile, ImageOps

from segret_jax.checkpoint import folders
from segret_jax.checkpoint import model as checkpoints
from segret_jax.config import Config, check_segmentation, override
from segret_jax.data.class_table import ClassTable
from segret_jax.data.decode import decode_image, stored_form
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Predictor
from segret_jax.model_card import known_facts, model_card
from segret_jax.models.config import model_name
from segret_jax.models.factory import ModelBundle
from segret_jax.models.forward import forward
from segret_jax.prediction.segmentation import Segmentation, segment
from segret_jax.prediction.video_files import is_video
from segret_jax.run import compilation

ImageLike: TypeAlias = UInt8[np.ndarray, "_ _ 3"] | Image.Image | str | Path


@dataclasses.dataclass(eq=False, repr=False)
class Model:
    """A model with its weights.

    Attributes:
        config: The config that it was trained with.
        classes: The classes of its outputs.
        bundle: The network and its weights.
        checkpoint: The folder that it was read from; its model card has the numbers kept there.
    """

    config: Config
    classes: ClassTable
    bundle: ModelBundle
    checkpoint: Path | None = None

    def __repr__(self) -> str:
        return f"Model({model_name(self.config.model)}, {self.classes.summary})"

    def logits(
        self, images: UInt8[np.ndarray, "b H W 3"] | Float32[np.ndarray, "b H W 3"]
    ) -> Float32[Array, "b h w k"] | Float32[Array, "b k"]:
        """Return the class scores before the softmax.

        Each new shape of the images compiles once.

        Args:
            images: RGB; uint8 from 0 to 255, normalized here, or float32 already normalized by
                `normalization.MEAN` and `STD`. They are not resized.

        Returns:
            Logits at the model's stride s: h = ⌈H/s⌉, w = ⌈W/s⌉; a classifier's are [b, k].

        Raises:
            InputError: The images have another form.
        """
        usable = images.ndim == 4 and images.size and images.shape[-1] == 3
        if not usable or images.dtype not in (np.uint8, np.float32):
            form = f"{images.dtype} of {images.shape}"
            raise InputError(f"images are {form}; give [b, H, W, 3], uint8 or normalized float32")
        return self._network(self.bundle.variables, images)

    @overload
    def predict(self, image: ImageLike) -> Segmentation: ...

    @overload
    def predict(self, image: list[ImageLike]) -> list[Segmentation]: ...

    def predict(self, image: ImageLike | list[ImageLike]) -> Segmentation | list[Segmentation]:
        """Segment an image, or each image of a list.

        `config.eval` says how the image is resized for the network, and whether it is segmented
        whole or by a sliding window, and at which scales.

        Args:
            image: RGB, uint8 [H, W, 3] from 0 to 255, of any size; or a PIL image of any mode with
                8 bits per channel; or an image file. PIL images and files are rotated by their EXIF
                data.

        Returns:
            The segmentation at the size of the image, or the list of those of a list.

        Raises:
            InputError: The image has another form or cannot be read, or the model is a classifier.
        """
        if isinstance(image, list):
            return [self.predict(one) for one in image]
        file = Path(image).expanduser() if isinstance(image, str | Path) else None
        if file and (is_video(file) or file.is_dir()):
            raise InputError(f"{file}: give pictures; segret predict also takes videos and folders")
        return segment(self._predictor, self.classes, _pixels(image), file=file)

    def save_pretrained(
        self, folder: str | Path, *, dtype: str = "float32", license: str = ""
    ) -> None:
        """Write the model as a folder that `segret_jax.load` reads, here or from the Hub.

        It holds `config.json` with the classes, `model.safetensors`, and a model card, `README.md`,
        with the scores that were kept with the checkpoint. Paths of this machine are left out.

        Args:
            folder: The folder, which is new or empty.
            dtype: "float32", or "float16" for a file of half the size; loaded, it is float32 again.
            license: The license of the weights for the card, as the Hub writes it, such as
                "apache-2.0"; none if left out.

        Raises:
            InputError: The folder is not empty, a weight is not finite in `dtype`, or the disk
                refuses.
        """
        folder = Path(folder).expanduser()
        facts = known_facts(self.checkpoint, self.bundle.variables)
        if license:
            facts["license"] = license
        if dtype != "float32":
            facts["rounded_to"] = dtype
        card = model_card(folder.absolute().name, self.config, self.classes, self.bundle, facts)
        checkpoints.save_pretrained(
            folder, config=self.config, table=self.classes, bundle=self.bundle, facts=facts,
            card=card, dtype=dtype,
        )  # fmt: skip

    @functools.cached_property
    def _predictor(self) -> Predictor:
        check_segmentation(self.config.model)
        return Predictor.from_config(self.bundle, self.config)

    @functools.cached_property
    def _network(self) -> Any:
        return jax.jit(functools.partial(forward, self.bundle.graph))


def _pixels(image: np.ndarray | Image.Image | str | Path) -> UInt8[np.ndarray, "H W 3"]:
    if isinstance(image, str | Path):
        return decode_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        stored = stored_form(image) if isinstance(image, ImageFile.ImageFile) else ""
        if image.mode.startswith(("I", "F")) or ";16" in stored:
            form = f"mode {image.mode} (stored as {stored or image.mode})"
            raise InputError(f"the image is of {form}; give one with 8 bits per channel")
        upright = ImageOps.exif_transpose(image)
        # A palette goes by way of RGBA: Pillow warns where it is partly transparent.
        return np.array((upright.convert("RGBA") if image.mode == "P" else upright).convert("RGB"))
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"the image is {image.dtype} of {image.shape}; give uint8 [H, W, 3]")
    return image


def load(source: str | Path | None, overrides: Mapping[str, Any]) -> Model:
    """Load a model; see `segret_jax.load`.

    Compiled programs are cached for the next start, as by the commands, unless JAX has a folder
    for them already.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        compilation.use_cache()
    checkpoint = folders.find(folders.default_model() if source is None else source)
    config = override(checkpoints.load_config(checkpoint), overrides)
    bundle = checkpoints.load_model(checkpoint, config)
    return Model(config, checkpoints.load_table(checkpoint), bundle, checkpoint)
