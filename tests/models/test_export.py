"""SegRet-tiny as one serialized program for any size and platform, run without this package."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.models.segret.model import SegRet
from tests.models.test_decoder import randomize
from tests.models.test_layers import noise

SIZES = [(1, 64, 64), (2, 96, 72), (1, 45, 83)]
RUN = """
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")
folder = sys.argv[1]
weights = [*np.load(f"{folder}/weights.npz").values()]
exported = jax.export.deserialize(open(f"{folder}/program", "rb").read())
assert exported.platforms == ("cpu", "cuda", "tpu")
images = np.load(f"{folder}/images.npz")
np.savez(f"{folder}/logits.npz", **{k: exported.call(weights, images[k]) for k in images})
assert not {"segret_jax", "flax"} & sys.modules.keys()
"""


def serialized(graph: Any, variables: list[Any]) -> bytes:
    """Export with the weights as arguments, a flat list: other keys than text do not serialize."""
    leaves, tree = jax.tree.flatten(variables)
    b, h, w = jax.export.symbolic_shape("b, h, w")

    @jax.jit
    def network(leaves: list[Any], image: Any) -> jax.Array:
        return nnx.merge(graph, *jax.tree.unflatten(tree, leaves))(image)

    image = jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32)
    exported = jax.export.export(network, platforms=("cpu", "cuda", "tpu"))
    return bytes(exported(leaves, image).serialize())


@pytest.mark.slow
def test_an_exported_reference_computes_the_same_in_another_process(tmp_path: Path):
    models = [SegRet(ModelConfig(kernels=k), 150, rngs=nnx.Rngs(0)) for k in ("auto", "reference")]
    for model in models:
        randomize(model)
    graph, *variables = nnx.split(models[1], nnx.Param, nnx.BatchStat)
    (tmp_path / "program").write_bytes(serialized(graph, variables))
    np.savez(tmp_path / "weights.npz", *map(np.asarray, jax.tree.leaves(variables)))
    images = {"x".join(map(str, size)): noise(*size, 3) for size in SIZES}
    np.savez(tmp_path / "images.npz", **images)
    subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=tmp_path, env=os.environ, check=True
    )

    auto, *trees = nnx.split(models[0])
    network = jax.jit(lambda trees, x: nnx.merge(auto, *trees)(x))
    with np.load(tmp_path / "logits.npz") as logits:
        for name, image in images.items():
            expected = np.asarray(network(trees, image))
            error = np.abs(logits[name] - expected).max() / np.abs(expected).max()
            assert error < 1e-5, (name, error)
