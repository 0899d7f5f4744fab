"""Prediction of more pictures than one machine can take, by Ray Data.

Each actor holds the model and segments blocks of paths; Ray writes each block as a Parquet file
(`rows`). What is in the folder already is left out, so that the same command goes on after any end.
Ray's own checkpoints (`ray.data.checkpoint`) are not used: they filter in tasks beside the actors,
which wait forever where the actors have all CPUs.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from segret_jax import __version__
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.data.prefetch import prefetch
from segret_jax.digests import weights_digest
from segret_jax.errors import InputError, abbreviate, shorten
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.protocol import scored_settings
from segret_jax.models.factory import ModelBundle, abstract
from segret_jax.models.kernels import platform_of
from segret_jax.prediction.paths import read_path
from segret_jax.prediction.rows import SCHEMA, RowFolder, error_row, row_of
from segret_jax.prediction.segmentation import segment
from segret_jax.run import compilation

LOCAL = "local"
MAX_ROWS = 100  # of a file: what a model loses if it is killed
BLOCKS_PER_MODEL = 4  # at least, so that all models end at about the same time
DEFAULT_CPUS = 4
RELEASE_SECONDS = 20  # in which Ray frees what a killed driver held
AUTHENTICATION = "ray._private.authentication.authentication_token_setup"
PROGRESS = "ray.data._internal.progress.logging_progress"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report its use to its makers
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_NON_TTY_PROGRESS_LOG_INTERVAL": "60",
}


class HostModel(NamedTuple):
    """A model in the memory of the host, for the devices of any process."""

    config: Config
    table: ClassTable
    variables: Any

    def settings(self) -> dict[str, Any]:
        """Return what the results depend on, as values for JSON."""
        found: dict[str, Any] = {"version": __version__, "classes": self.table.to_dict()}
        found["weights"] = weights_digest(self.variables)
        for name, group in (("model", self.config.model), ("eval", self.config.eval)):
            found |= {f"{name}.{k}": v for k, v in scored_settings(group).items()}
        return found


class Segmenter:
    """What an actor runs: it holds the model, and segments blocks of paths."""

    def __init__(self, reference: Sequence[Any], num_threads: int):
        """Load the model.

        Args:
            reference: Ray's reference to a `HostModel`, in a list, where Ray leaves it as it is.
            num_threads: Threads of the network on a CPU; they do not change the results.
        """
        import ray

        os.environ["NPROC"] = str(num_threads)  # read by XLA, which takes all cores otherwise
        model: HostModel = ray.get(reference[0])
        compilation.use_cache()
        platform = platform_of(jax.local_devices())
        graph = abstract(model.config.model, model.table.num_classes, platform=platform).graph
        bundle = ModelBundle(graph, *model.variables)
        self.table = model.table
        self.predictor = Predictor.from_config(bundle, model.config)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the row of each path in the column `item`."""
        read = prefetch(_read, block["item"].to_pylist(), workers=2, buffer_size=2)
        return pa.Table.from_pylist([self._row(*one) for one in read], schema=SCHEMA)

    def _row(self, path: str, image: np.ndarray | InputError) -> dict[str, Any]:
        if isinstance(image, InputError):
            return error_row(path, image)
        try:
            return row_of(path, segment(self.predictor, self.table, image))
        except InputError as error:  # of the model, not of the picture
            raise InputError(f"{path}: {error}") from error
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            height, width, _ = image.shape
            return error_row(path, InputError(f"{path}: {width}x{height} takes too much memory"))


def _read(path: str) -> tuple[str, np.ndarray | InputError]:
    try:
        return path, read_path(path)
    except InputError as error:
        return path, error


class Resources(NamedTuple):
    """The number of models to run at once, and what each takes."""

    models: int
    cpus: int
    gpus: int


def plan_resources(nodes: Sequence[Mapping[str, float | int]], cpus: int | None) -> Resources:
    """Divide the machines among models: one for each GPU or, without any, for `cpus` CPU cores.

    Args:
        nodes: {"CPU": free cores, "GPU": free GPUs} of each machine.
        cpus: The cores of a model; None: 4, or fewer if the machines have not so many.

    Raises:
        InputError: There is no room for one.
    """
    free = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    gpus = min(1, max((n for _, n in free), default=0))
    cores_per_model = [cores // max(n, 1) for cores, n in free if n >= gpus]
    most = min if gpus else max  # every GPU gets a model
    needed = cpus or max(1, min(DEFAULT_CPUS, most(cores_per_model, default=1)))
    models = sum(min(cores // needed, n if gpus else cores) for cores, n in free)
    if not models:
        found = abbreviate([cores for cores, _ in free], 10) or "none"
        raise InputError(
            f"a model needs {needed} CPU cores{' beside a GPU' * gpus} on one machine, but free "
            f"CPU cores of each machine are {found}: give a smaller --cpus-per-model, or wait for "
            "other jobs to end"
        )
    return Resources(models, needed, gpus)


def predict_on_ray(
    model: HostModel, paths: Sequence[str], folder: RowFolder, *, cpus: int | None = None
) -> None:
    """Segment pictures and write their rows, within `connected`.

    Args:
        model: The model.
        paths: Absolute paths and URLs.
        folder: Where the rows go.
        cpus: CPU cores of each model, or None; see `plan_resources`.

    Raises:
        InputError: There are too few CPUs, the model fails, or the disk refuses.
    """
    import ray.data

    found = plan_resources(_free_resources(), cpus)
    device = "a GPU and " if found.gpus else ""
    models = "1 model" if found.models == 1 else f"{found.models} models, each"
    print(f"{models} with {device}{found.cpus} CPU cores", flush=True)
    num_rows = min(MAX_ROWS, -(-len(paths) // (BLOCKS_PER_MODEL * found.models)))
    data = ray.data.from_items([*paths], override_num_blocks=-(-len(paths) // num_rows))
    rows = data.map_batches(
        Segmenter,
        fn_constructor_args=([ray.put(model)], found.cpus),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=found.models),
        num_cpus=found.cpus,
        num_gpus=found.gpus,
    )
    with _remote_errors_as_input_errors():
        # Writers need no CPU, else they would wait forever where the models have all.
        rows.write_parquet(
            folder.store_path,
            filesystem=folder.store,
            ray_remote_args={"num_cpus": 0},
            concurrency=found.models,
        )


def require_ray() -> None:
    """Raise InputError if Ray Data is not installed."""
    if not all(map(find_spec, ("ray", "pandas"))):
        raise InputError('--ray needs Ray Data: pip install "ray[data]"')


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Start or join Ray for the block, before JAX has threads: Ray forks.

    Args:
        address: HOST:PORT of a cluster, "auto" for that of this machine, or `LOCAL` for a Ray of
            its own, which ends with the block.

    Raises:
        InputError: There is no such cluster.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger(AUTHENTICATION).setLevel(logging.ERROR)  # it warns that it is on
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False, **own)
    except Exception as error:  # also a bare one, where a busy machine starts Ray too slowly
        ray.shutdown()
        raise InputError(f"no Ray at {address}: {shorten(str(error))}") from error
    try:
        import ray.data  # which sets up its loggers

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger(PROGRESS).setLevel(logging.INFO)
        yield
    finally:
        ray.shutdown()


def _free_resources() -> list[dict[str, float]]:
    """Return what is free on each machine; wait a little for what a killed run still holds."""
    import ray
    from ray._private.state import available_resources_per_node

    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        free, total = ray.available_resources(), ray.cluster_resources()
        is_idle = all(free.get(kind, 0) >= total.get(kind, 0) for kind in ("CPU", "GPU"))
        if is_idle or time.monotonic() > deadline:
            return [*available_resources_per_node().values()]
        time.sleep(0.5)


@contextmanager
def _remote_errors_as_input_errors() -> Iterator[None]:
    """Convert the mistakes and the disk errors that other processes met to one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause: Any = error
        while cause := getattr(cause, "cause", None) or cause.__cause__:
            if isinstance(cause, InputError | OSError) and not isinstance(
                cause, ray.exceptions.RayError
            ):
                raise InputError(f"{cause}; the same command goes on") from error
        raise
