"""AdamW with a family's rules for its parameters, poly schedule and linear warmup."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

from segret_jax.checkpoint.packing import LARGE, pack, small_or_large, unpack
from segret_jax.config import OptimConfig
from segret_jax.models.family import Family, Path
from segret_jax.trees import leaves_by_path


def learning_rate_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return step → learning rate: poly decay from step 0, times the linear warmup.

    lr(t) = (lr − min)·(1 − t/T)^p + min; for t < W times 1 − (1 − t/W)(1 − r).
    """

    def schedule(step: Any) -> Any:
        span = config.learning_rate - config.min_learning_rate
        poly = span * (1 - step / steps) ** config.poly_power + config.min_learning_rate
        if config.warmup_steps == 0:
            return poly
        remaining = jnp.maximum(1 - step / config.warmup_steps, 0)
        return poly * (1 - remaining * (1 - config.warmup_ratio))

    return schedule


def make_optimizer(config: OptimConfig, steps: int, family: Family) -> optax.GradientTransformation:
    """Build AdamW for trees of parameters, by the rules of `family`; its moments are packed.

    Decay is decoupled: p ← p − lr·rule·(m̂/(√v̂ + ε) + decay·p).
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    scale = optax.scale_by_learning_rate(learning_rate_schedule(config, steps))
    rules = family.load()

    def rule(path: Path) -> tuple[float, float]:
        rate, decays = rules.parameter_groups[rules.parameter_group(path)]
        rate, decays = (rate, decays) if config.norm_rules else (1.0, True)
        return rate, config.weight_decay * decays

    def multipliers(params: Any, which: int) -> dict[str, Any]:
        """Return that of the learning rate (0), or of decayed parameters (1), as `pack` does."""
        leaves = leaves_by_path(params)
        where = {path: small_or_large(path, leaf) for path, leaf in leaves.items()}
        full = {
            path: np.full(() if where[path] == LARGE else leaf.shape, rule(path)[which], np.float32)
            for path, leaf in leaves.items()
        }
        return pack(unflatten_dict(full), lambda path, _: where[path])

    def init(params: Any) -> optax.OptState:
        packed, nothing = pack(params), optax.EmptyState()
        # The form of optax.adamw with a mask, which checkpoints have.
        return adam.init(packed), optax.MaskedState(nothing), nothing, scale.init(packed)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, optax.OptState]:
        updates, adam_state = adam.update(pack(grads), state[0])
        rates, decays = multipliers(params, 0), multipliers(params, 1)
        updates = jax.tree.map(
            lambda u, p, rate, decay: (u + decay * p) * rate, updates, pack(params), rates, decays
        )
        updates, scale_state = scale.update(updates, state[3])
        return unpack(updates, params), (adam_state, *state[1:3], scale_state)

    return optax.GradientTransformation(init, update)
