"""Inference as released: whole or by sliding window, at several scales, plain and mirrored.

The network computes logits at its stride for each tile of each view of an image. The rest is
computed in blocks of pixels: both resizes and the average over windows (`rescale`), softmax,
average over views, best class. Scores of all classes at full resolution are never held.

A batch is split over the devices of a mesh, and each runs the same program: the results are the
same to the bit on any number of devices.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float16, Float32, UInt8
from tqdm import tqdm

from segret_jax.config import Config, EvalConfig
from segret_jax.data.transforms import resize_for_evaluation
from segret_jax.errors import InputError
from segret_jax.evaluation import rescale
from segret_jax.evaluation.padding import Padding, ladder
from segret_jax.evaluation.plan import Plan, Size, Tiling, logits_size, scaled_target, tilings
from segret_jax.evaluation.rescale import BLOCK, InterpolationMatrix, Tile
from segret_jax.models.factory import ModelBundle
from segret_jax.models.families import get_family
from segret_jax.models.forward import forward, stride_of, takes_size
from segret_jax.parallel.mesh import data_mesh
from segret_jax.run.stored_programs import StoredProgram

NOT_A_NUMBER = 255  # in a label map; no class has this number
TIE = 1e-5  # a second best score this close to the best, relative to it or to 1, is a tie

Views = list[Float[Array, "b h w k"]]


class Prepared(NamedTuple):
    """The inputs of the network for an image at each scale."""

    size: Size
    scales: list["ScaledImage"]


class ScaledImage(NamedTuple):
    """An image at one scale, and the padded size of its tiles; None: they are not padded."""

    pixels: UInt8[np.ndarray, "_ _ 3"]
    tiling: Tiling
    padded: Size | None


class Prediction(NamedTuple):
    """Each pixel's best class, and whether a second ties with it within rounding."""

    label_map: UInt8[np.ndarray, "h w"]
    tied: Bool[np.ndarray, "h w"]


class Programs(NamedTuple):
    """The compiled programs; each device runs them on its share of a batch."""

    network: Any
    rows: Any
    columns: Any
    average: Any
    best: Any
    highest: Any


class Predictor:
    """A model with its weights, applied to images of any size.

    The network is compiled once for each padded size of its input, and what follows once for each
    size of its logits; the sizes of the images compile nothing.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        config: EvalConfig,
        *,
        min_side: int = 1,
        mesh: Mesh | None = None,
        stored: bool = False,
    ):
        """Place the weights on the devices.

        Args:
            bundle: The model; its network has the attribute `stride`, that of the logits. Without
                the attribute `takes_size`, its inputs are not padded.
            config: The sizes of the network's inputs, and the views to average.
            min_side: The shortest side that the network takes (`Family.min_side`).
            mesh: The devices, along whose axis `data` images are split; by default all.
            stored: Whether to keep the network's programs on the disk (`run.stored_programs`).
        """
        self.config, self.min_side = config, min_side
        self.mesh = mesh or data_mesh()
        self.programs = compiled_programs(bundle.graph, self.mesh, stored=stored)
        self.stride, self.takes_size = stride_of(bundle), takes_size(bundle)
        replicated = NamedSharding(self.mesh, PartitionSpec())
        self.variables = jax.device_put(bundle.variables, replicated)

    @classmethod
    def from_config(
        cls, bundle: ModelBundle, config: Config, *, stored: bool = False
    ) -> "Predictor":
        """Return the predictor of a model, on all devices; `config` is the model's own."""
        min_side = get_family(config.model.family).min_side
        return cls(bundle, config.eval, min_side=min_side, stored=stored)

    @property
    def batch_size(self) -> int:
        """Images predicted at once by all devices together."""
        return self.config.batch_size * self.mesh.size

    def label_map(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Return each pixel's most probable class at the image's own size."""
        return self.scores([self.prepare(image)]).predictions()[0].label_map

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w k"]:
        """Return each pixel's class probabilities at the image's own size."""
        return self.scores([self.prepare(image)]).probabilities(np.float32)[0]

    def prepare(
        self, image: UInt8[np.ndarray, "h w 3"], *, padding: Padding | None = None
    ) -> Prepared:
        """Resize an image for `predict`; threads of the host can do this ahead.

        Args:
            image: RGB from 0 to 255.
            padding: The padded sizes of the network's inputs; None: those of the ladder.
        """
        size = image.shape[0], image.shape[1]
        planned = tilings(size, self.config, min_side=self.min_side)
        scaled = []
        for scale, tiling in zip(self.config.scales, planned, strict=True):
            target = scaled_target(self.config, scale)
            pixels = resize_for_evaluation(image, target=target, size=tiling.size)
            padded = ladder(tiling.tile) if padding is None else padding.get(tiling.tile)
            scaled.append(ScaledImage(pixels, tiling, padded if self.takes_size else None))
        return Prepared(size, scaled)

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Predict up to `batch_size` images whose tiles have the same sizes, as in a `Plan`.

        Raises:
            InputError: The network's output is not a number.
        """
        return self.scores(batch).predictions()

    def scores(self, batch: Sequence[Prepared]) -> "Scores":
        """Run the network on the images of `predict`, and keep its logits."""
        views, sizes = self._views(batch), [image.size for image in batch]
        return Scores(views, sizes, programs=self.programs, split=self._split)

    def forecast(self, plan: Plan) -> str:
        """Compile and run the plan's largest input; return the memory and time of the plan as text.

        Memory is that of the weights, the buffers and the logits held; time is that of the
        compilations and the passes.
        """
        pixels = self._split(np.zeros((self.batch_size, *plan.largest, 3), np.uint8))
        is_padded = plan.largest in plan.padding.values()
        arguments = (self.variables, pixels, _true_size(plan.largest if is_padded else None))
        start = time.perf_counter()
        program = self.programs.network.lower(*arguments).compile()
        compiled = time.perf_counter()
        for _ in range(2):  # the first run of a program is slow
            begun = time.perf_counter()
            logits = jax.block_until_ready(program(*arguments))
        seconds = (time.perf_counter() - begun) * plan.pixels / math.prod(plan.largest)
        seconds += len(plan.passes) * (compiled - start)
        needed = plan.held_logits * logits.shape[-1] * 4 * self.config.batch_size
        if (memory := program.memory_analysis()) is not None:
            needed += memory.temp_size_in_bytes + memory.argument_size_in_bytes
        return (
            f"about {max(needed / 1e9, 0.1):.1f} GB of memory per device; the network alone about "
            f"{tqdm.format_interval(seconds)}"
        )

    def _views(self, batch: Sequence[Prepared]) -> list[list[Tile]]:
        """Run the network on every tile of every view, one after the other.

        Large scales come first, while no other logits are held.
        """
        scales = sorted(range(len(self.config.scales)), key=lambda i: -self.config.scales[i])
        counts = [max(image.scales[i].tiling.num_tiles for image in batch) for i in scales]
        return [
            [self._tile(batch, scale, number, mirrored=mirrored) for number in range(count)]
            for scale, count in zip(scales, counts, strict=True)
            for mirrored in ((False, True) if self.config.flip else (False,))
        ]

    def _tile(self, batch: Sequence[Prepared], scale: int, number: int, *, mirrored: bool) -> Tile:
        """Run the network on one tile of each image; an image without it gets zero weights."""
        _, (_, tile, *_), padded = batch[0].scales[scale]
        (height, width), network = tile, padded or tile
        expected = logits_size(network, self.stride)
        pixels = np.zeros((self.batch_size, *network, 3), np.uint8)
        rows: list[InterpolationMatrix | None] = [None] * self.batch_size
        columns = rows.copy()
        for i, image in enumerate(batch):
            whole, tiling, _ = image.scales[scale]
            if number < tiling.num_tiles:
                top, left = tiling.corner(number)
                whole = whole[:, ::-1] if mirrored else whole
                pixels[i, :height, :width] = whole[top : top + height, left : left + width]
                rows[i], columns[i] = rescale.image_matrices(
                    image.size,
                    tiling,
                    number,
                    logits=logits_size(tile, self.stride),
                    mirrored=mirrored,
                )
        # Block here: two passes in flight would double peak memory.
        true_size = _true_size(tile if padded else None)
        logits = self.programs.network(self.variables, self._split(pixels), true_size)
        logits = jax.block_until_ready(logits)
        if logits.shape[1:-1] != expected:  # the gather below does not check bounds
            found, given, wanted = (
                "x".join(map(str, size)) for size in (logits.shape[1:-1], network, expected)
            )
            raise ValueError(
                f"the logits of an input of {given} are {found}, but the model's stride is "
                f"{self.stride}: expected {wanted}; correct its `stride`"
            )
        return Tile(logits, *map(rescale.stack_matrices, (rows, columns), _largest(batch), BLOCK))

    def _split(self, arrays: Any) -> Any:
        """Put host arrays onto the devices, which JAX cannot infer with several processes."""
        return jax.device_put(arrays, NamedSharding(self.mesh, PartitionSpec("data")))


def _true_size(size: Size | None) -> Any:
    """Return the last argument of the network's program: scalars, so that none compiles it anew."""
    return None if size is None else tuple(np.int32(side) for side in size)


def _largest(batch: Sequence[Prepared]) -> Size:
    return max(image.size[0] for image in batch), max(image.size[1] for image in batch)


class Scores:
    """The logits of a batch; every result is computed from them in blocks of pixels, when asked.

    Each method returns one array per image, at the image's own size.
    """

    def __init__(
        self,
        views: Sequence[Sequence[Tile]],
        sizes: Sequence[Size],
        *,
        programs: Programs,
        split: Callable[[Any], Any],
    ):
        self._views, self._sizes = views, sizes
        self._programs, self._split = programs, split

    def averaged(self, others: Sequence["Scores"]) -> "Scores":
        """Return the scores whose probabilities are the mean of these and those of other images.

        Args:
            others: Scores of batches of the same sizes, such as the frames before in a video.
        """
        views = [view for scores in (self, *others) for view in scores._views]
        return Scores(views, self._sizes, programs=self._programs, split=self._split)

    def predictions(self) -> list[Prediction]:
        """Return each pixel's best class, and whether it ties with another.

        Raises:
            InputError: The network's output is not a number.
        """
        judged = [(corner, self._programs.best(views)) for corner, views in self._blocks()]
        best, tied = (self._assemble((c, x[i]) for c, x in judged) for i in (0, 1))
        if any(image.max() == NOT_A_NUMBER for image in best):
            raise InputError(
                "the network's output is not a number: the weights are damaged, or "
                "model.dtype=float32 is needed"
            )
        return [*map(Prediction, best, tied)]

    def confidence(self) -> list[Float16[np.ndarray, "h w"]]:
        """Return each pixel's highest probability."""
        highest = self._programs.highest
        return self._assemble((corner, highest(views)) for corner, views in self._blocks())

    def probabilities(self, dtype: Any = np.float16) -> list[Float[np.ndarray, "h w k"]]:
        """Return the probabilities of all classes, float16 or float32."""
        average = self._programs.average
        parts = ((c, np.asarray(average(views)).astype(dtype)) for c, views in self._blocks())
        return self._assemble(parts)

    def _blocks(self) -> Iterator[tuple[Size, list[Array]]]:
        def run(program: Any) -> rescale.Multiply:
            return lambda logits, *matrix: program(logits, *self._split(matrix))

        multiply = run(self._programs.rows), run(self._programs.columns)
        return rescale.blocks(self._views, *multiply)

    def _assemble(self, parts: Iterable[tuple[Size, Any]]) -> list[np.ndarray]:
        height, width = map(max, zip(*self._sizes, strict=True))
        whole = rescale.assemble(parts, (height, width))
        return [whole[i, :h, :w] for i, (h, w) in enumerate(self._sizes)]


@functools.cache
def compiled_programs(graph: nnx.GraphDef[Any], mesh: Mesh, *, stored: bool = False) -> Programs:
    """Build the programs, once for all evaluations of a training run."""
    split = PartitionSpec("data")

    def per_device(function: Callable, *specs: PartitionSpec, check: bool = True) -> Any:
        return jax.jit(
            jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=check),
            in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
        )

    function = functools.partial(forward, graph)
    # Its kernels do not declare over which axes their results vary.
    network = per_device(function, PartitionSpec(), split, PartitionSpec(), check=False)
    return Programs(
        network=StoredProgram(network, function, mesh) if stored else network,
        rows=per_device(rescale.multiply_rows, split, split, split),
        columns=per_device(rescale.multiply_columns, split, split, split),
        average=per_device(_average, split),
        best=per_device(_best, split),
        highest=per_device(_highest, split),
    )


def _average(views: Views) -> Float[Array, "b h w k"]:
    """Return the mean of the views' probabilities."""
    return functools.reduce(jnp.add, map(jax.nn.softmax, views)) / len(views)


def _best(views: Views) -> tuple[UInt8[Array, "b h w"], Bool[Array, "b h w"]]:
    """Return the first best class, NOT_A_NUMBER where a score is nan, and whether it is a tie.

    The logits of a single view have the order of its probabilities.
    """
    scores = views[0] if len(views) == 1 else _average(views)
    top = scores.max(-1, keepdims=True)
    # On CPU a third of the time of argmax, which XLA does not vectorize.
    classes = jnp.arange(scores.shape[-1], dtype=jnp.float32)
    first = jnp.where(scores == top, classes, float(NOT_A_NUMBER)).min(-1)
    close = scores >= top - TIE * jnp.maximum(jnp.abs(top), 1)
    return first.astype(jnp.uint8), jnp.where(close, 1.0, 0.0).sum(-1) > 1


def _highest(views: Views) -> Float16[Array, "b h w"]:
    """Return the highest probability."""
    return _average(views).max(-1).astype(jnp.float16)
