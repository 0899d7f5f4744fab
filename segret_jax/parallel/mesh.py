"""The mesh of all devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from segret_jax.config import Config, MeshConfig
from segret_jax.errors import InputError

AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of `devices` with the axes "data" and "fsdp".

    Args:
        config: The sizes of the axes; -1 for one of them means the rest.
        devices: The devices; by default all.

    Raises:
        InputError: The sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count, sizes = len(devices), [config.data, config.fsdp]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = count // max(abs(int(np.prod(sizes))), 1)
    if min(sizes) < 1 or sizes[0] * sizes[1] != count:
        raise InputError(
            f"mesh.data is {config.data} and mesh.fsdp is {config.fsdp}, but there are {count} "
            f"devices: give numbers that multiply to {count}, or -1 for one of them"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def data_mesh() -> Mesh:
    """Return the mesh of this process's devices, over which evaluation splits its images."""
    return make_mesh(MeshConfig(), jax.local_devices())


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raise InputError unless the global batch can be split over accumulation and devices."""
    train = config.train
    parts = mesh.size * train.accumulate
    if train.batch_size % parts:
        times = f" x train.accumulate {train.accumulate}" * (train.accumulate > 1)
        raise InputError(
            f"train.batch_size is {train.batch_size}, the batch of all {mesh.size} devices{times} "
            f"together: give a multiple of {parts}"
        )
