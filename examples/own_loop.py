"""Use SegRet as a plain module in a training loop of your own, here on random images.

SegMAN is used alike; its logits have stride 8, and its images sides of 224 or more.

python examples/own_loop.py
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from segret_jax.config import ModelConfig
from segret_jax.models.segret.model import SegRet

NUM_CLASSES = 4


def main(*, steps: int = 5, size: int = 64) -> list[float]:
    """Return the loss of each step."""
    model = SegRet(ModelConfig(drop_path=0.0), NUM_CLASSES, rngs=nnx.Rngs(0))
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, states)
    optimizer = optax.adamw(1e-3)
    opt_state = optimizer.init(params)

    images = jax.random.normal(jax.random.key(0), (2, size, size, 3))  # normalized RGB
    labels = (images[:, ::4, ::4, 0] > 0).astype(jnp.int32)  # the logits have stride 4

    @jax.jit
    def step(params: Any, batch_stats: Any, opt_state: Any) -> tuple[Any, Any, Any, jax.Array]:
        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params, batch_stats)
            logits = model(images, train=True)  # [b, h, w, k]; updates the batch statistics
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state, loss

    losses = []
    for _ in range(steps):
        params, batch_stats, opt_state, loss = step(params, batch_stats, opt_state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    print("losses:", ", ".join(f"{loss:.3f}" for loss in main()))
