"""The report of `segret summary`: parameters, multiply-adds, memory; no weight is allocated."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from segret_jax.models.config import ModelConfig, model_name
from segret_jax.models.factory import abstract
from segret_jax.models.families import get_family
from segret_jax.models.family import Size
from segret_jax.models.flops import Cost, saved_bytes
from segret_jax.models.layers import SampleKeys

REPORT = """\
{model}, {size} (height x width), batch {batch}, {num_classes} classes

{table}

Each stage is counted with the downsample after it. G = 10^9, GB = 10^9 bytes.
  mult-adds   multiply-adds of convolutions and linear layers
  attention   multiply-adds of Q K^T and of scores x V; they are in no other column
  layers      mult-adds + 1 per output of a convolution's bias, 2 per normalized element,
              1 per ReLU: what mmcv counts; the paper's figures are up to 0.3G smaller

{notes}
Kept for the backward pass: {saved:.2f} GB
  What jax.vjp of the network saves in {dtype}, without parameters; XLA may recompute part of it."""


def summarize(config: ModelConfig, num_classes: int, size: Size, *, batch: int = 1) -> str:
    """Return the text that the command prints, with the operations of `batch` images."""
    bundle = abstract(config, num_classes)
    costs = get_family(config.family).load().costs
    if costs is None:
        return f"{model_name(config)}: {bundle.num_params:,} parameters"

    def forward(variables: Any, image: jax.Array) -> jax.Array:
        keys = SampleKeys(jax.random.key(0), jnp.arange(batch))
        return nnx.merge(bundle.graph, *variables)(image, train=True, keys=keys)

    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    counts = costs.count(config, num_classes, size)
    counts = {part: cost * batch for part, cost in counts.items()}
    total = sum(counts.values(), Cost())
    return REPORT.format(
        model=model_name(config),
        size=f"{size[0]}x{size[1]}",
        batch=batch,
        num_classes=num_classes,
        table=_table(costs.count_parameters(bundle.params), counts | {"total": total}),
        notes=costs.notes(config, size, batch=batch, total=total),
        saved=saved_bytes(forward, bundle.variables, image) / 1e9,
        dtype=config.dtype,
    )


def _table(num_params: dict[str, int], counts: dict[str, Cost]) -> str:
    num_params = {**num_params, "total": sum(num_params.values())}
    rows = [["", "parameters", "mult-adds", "attention", "layers"]]
    for part, cost in counts.items():
        columns = (cost.mult_adds, cost.attention, cost.layers)
        giga = (f"{operations / 1e9:.2f}G" for operations in columns)
        rows.append([part, f"{num_params[part]:,}", *giga])
    return "\n".join(f"{row[0]:<8}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows)
