"""The very programs of training and evaluation, lowered for chips that need not be there.

Only shapes are made, so that no memory is needed for a model of any size.
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
    shapes = {
        "image": ((*lead, *config.data.crop, 3), jnp.float32),
        "label": ((*lead, *config.data.crop), jnp.uint8),
        "index": (lead, jnp.int32),
    }
    sharding = batch_sharding(mesh, parts)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }
    step = make_train_step(graph, optimizer, config.train, mesh)
    return step.lower(state, batch)


def largest_input(config: Config) -> Size:
    """Return the largest network input of evaluation: of an image as long as `resize_target`."""
    long, short = config.eval.resize_target
    return max((tiling.tile for tiling in tilings((short, long), config.eval)), key=math.prod)


def evaluation(config: Config, num_classes: int, topology: Topology) -> Any:
    """Lower the network of evaluation at its largest input, on the chips of one host."""
    mesh = make_mesh(MeshConfig(), topology.one_host)
    bundle = abstract(config.model, num_classes)
    whole = NamedSharding(mesh, PartitionSpec())
    variables = jax.tree.map(lambda x: _placed(x, whole), bundle.variables)
    images = jax.ShapeDtypeStruct(
        (config.eval.batch_size * mesh.size, *largest_input(config), 3),
        jnp.uint8,
        sharding=NamedSharding(mesh, PartitionSpec("data")),
    )
    return compiled_programs(bundle.graph, mesh).network.lower(variables, images)


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
