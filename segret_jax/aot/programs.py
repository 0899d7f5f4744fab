"""The programs of training and evaluation, lowered for chips that need not be present.

Only shapes are created, so a model of any size needs no memory.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from segret_jax.aot.chips import Topology
from segret_jax.config import Config, MeshConfig
from segret_jax.evaluation.inference import compiled_programs
from segret_jax.evaluation.plan import Size, tilings
from segret_jax.models.factory import abstract
from segret_jax.models.families import get_family
from segret_jax.parallel.mesh import check_batch, make_mesh
from segret_jax.parallel.sharding import batch_sharding, shardings
from segret_jax.training.initialization import abstract_state
from segret_jax.training.step import make_train_step


def train_step(config: Config, num_classes: int, topology: Topology) -> Any:
    """Lower the training step of `config`, for `num_classes`, on all chips of `topology`."""
    mesh = make_mesh(config.mesh, topology.devices)
    check_batch(config, mesh)
    graph, optimizer, state = abstract_state(config, num_classes)
    state = jax.tree.map(_placed, state, shardings(state, mesh))
    parts = config.train.accumulate
    lead = (parts, config.train.batch_size // parts) if parts > 1 else (config.train.batch_size,)
    sharding = batch_sharding(mesh, parts)

    def samples(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=sharding)

    crop = config.data.crop
    batch = {
        "image": samples(jnp.float32, *crop, 3),
        "label": samples(jnp.uint8, *crop),
        "index": samples(jnp.int32),
    }
    return make_train_step(graph, optimizer, config.train, mesh).lower(state, batch)


def largest_input(config: Config) -> Size:
    """Return the largest network input of evaluation: of an image as long as `resize_target`."""
    long, short = config.eval.resize_target
    min_side = get_family(config.model.family).min_side
    planned = tilings((short, long), config.eval, min_side=min_side)
    return max((tiling.tile for tiling in planned), key=math.prod)


def evaluation(config: Config, num_classes: int, topology: Topology) -> Any:
    """Lower the network of evaluation at its largest input, on the chips of one host."""
    mesh = make_mesh(MeshConfig(), topology.one_host)
    bundle = abstract(config.model, num_classes)
    whole = NamedSharding(mesh, PartitionSpec())
    variables = jax.tree.map(lambda x: _placed(x, whole), bundle.variables)
    shape = (config.eval.batch_size * mesh.size, *largest_input(config), 3)
    split = NamedSharding(mesh, PartitionSpec("data"))
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split)
    return compiled_programs(bundle.graph, mesh).network.lower(variables, images, None)


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
