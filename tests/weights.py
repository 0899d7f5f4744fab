"""Weights by which every layer matters, and a reference as one would capture it from PyTorch."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from segret_jax.checkpoint.orbax_model import save_model
from segret_jax.config import Config, ModelConfig
from segret_jax.data.class_table import ClassTable
from segret_jax.models.factory import ModelBundle, build


def random_model(model: ModelConfig, num_classes: int, *, seed: int = 1) -> ModelBundle:
    """Build a model with noise in every tensor: no zero branch, no layer scale of 1e-6."""
    graph, *trees = build(model, num_classes, seed=0)
    rng = np.random.default_rng(seed)

    def leaf(path: Any, x: jax.Array) -> jax.Array:
        noise = rng.standard_normal(x.shape).astype(np.float32)
        if path[-1].key in ("scale", "var", "gamma1", "gamma2"):
            return jnp.asarray(1 + 0.3 * np.abs(noise))
        return jnp.asarray(noise * np.prod(x.shape[:-1] or (25,)) ** -0.5)

    params, batch_stats = (jax.tree_util.tree_map_with_path(leaf, tree) for tree in trees)
    return ModelBundle(graph, params, batch_stats)


def table_of(num_classes: int, *, name: str = "made_up") -> ClassTable:
    return ClassTable(
        name=name,
        class_names=tuple(f"{name} {i}" for i in range(num_classes)),
        colors=np.zeros((num_classes, 3), np.uint8),
        raw_ids=((),) * num_classes,
    )


def saved_model(
    folder: Path, model: ModelConfig, num_classes: int, *, seed: int = 1
) -> ModelBundle:
    """Write a random model as a checkpoint; return it."""
    parts = random_model(model, num_classes, seed=seed)
    save_model(
        folder,
        config=Config(model=model),
        table=table_of(num_classes),
        bundle=parts,
        source={"file": "made up"},
    )
    return parts


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def model_outputs(parts: ModelBundle, images: np.ndarray) -> np.ndarray:
    """Return the model's output of normalized `images` [b, H, W, 3]."""
    network = jax.jit(lambda variables, x: nnx.merge(parts[0], *variables)(x))
    return np.asarray(network(parts[1:], images))


def captured(parts: ModelBundle, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a forward pass of `image` [b, 3, H, W] gives, in PyTorch's form."""

    def stages(variables: Any, image: jax.Array) -> dict[str, jax.Array]:
        network = nnx.merge(parts[0], *variables)
        maps = network.encoder(image)
        names = ("c1", "c2", "c3", "c4", "logits")
        return dict(zip(names, (*maps, network.decoder(maps)), strict=True))

    outputs = jax.jit(stages)(parts[1:], image.transpose(0, 2, 3, 1))
    return {"input": image} | {k: np.moveaxis(np.asarray(v), -1, 1) for k, v in outputs.items()}
