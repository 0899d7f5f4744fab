"""The report of `segret summary`: parameters, multiply-adds, memory; no weight is allocated."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from segret_jax.models.config import ModelConfig, model_name
from segret_jax.models.factory import abstract
from segret_jax.models.families import get_family
from segret_jax.models.family import Size
from segret_jax.models.flops import Cost, operations, saved_bytes
from segret_jax.models.layers import SampleKeys


def summarize(config: ModelConfig, num_classes: int, size: Size, *, batch: int = 1) -> str:
    """Return the text that the command prints.

    Args:
        config: The settings of the model.
        num_classes: The number of classes of the logits.
        size: Height and width of the images.
        batch: The number of images.

    Returns:
        The parameters, the operations and the memory of the backward pass.
    """
    bundle = abstract(config, num_classes)
    images = max(batch, get_family(config.family).min_batch)  # that training takes

    # Not `models.forward`, which evaluates: training keeps other values for the backward pass.
    def forward(variables: Any, image: jax.Array) -> jax.Array:
        keys = SampleKeys(jax.random.key(0), jnp.arange(images))
        return nnx.merge(bundle.graph, *variables)(image, train=True, keys=keys)

    if costs := get_family(config.family).load().costs:
        counts = costs.count(config, num_classes, size)
        counts = {part: cost * batch for part, cost in counts.items()}
        total = sum(counts.values(), Cost())
        table = _table(costs.count_parameters(bundle.params), counts | {"total": total})
        notes = costs.notes(config, size, batch=batch, total=total)
    else:
        table, notes = f"{bundle.num_params:,} parameters", "Multiply-adds: "
        notes += f"{batch * operations(config, num_classes, size) / 2e9:.3g}G, by XLA's count"
    image = jax.ShapeDtypeStruct((images, *size, 3), jnp.float32)
    saved = saved_bytes(forward, bundle.variables, image) / images * batch / 1e9
    title = f"{model_name(config)}, {size[0]}x{size[1]} (height x width), batch {batch}"
    return (
        f"{title}, {num_classes} classes\n\n{table}\n\n{notes}\n"
        f"Kept for the backward pass: {saved:.3g} GB\n"
        f"  What jax.vjp of the network saves in {config.dtype}, without parameters; XLA may "
        "recompute part of it.\n\nG = 10^9, GB = 10^9 bytes."
    )


def _table(num_params: dict[str, int], counts: dict[str, Cost]) -> str:
    num_params = {**num_params, "total": sum(num_params.values())}
    rows = [["", "parameters", "mult-adds", "attention", "elementwise"]]
    for part, cost in counts.items():
        columns = (cost.mult_adds, cost.attention, cost.elementwise)
        giga = (f"{operations / 1e9:.2f}G" for operations in columns)
        rows.append([part, f"{num_params[part]:,}", *giga])
    return "\n".join(f"{row[0]:<8}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows)
