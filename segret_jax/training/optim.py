"""AdamW with the released code's per-parameter rules, poly schedule and linear warmup."""

from typing import Any

import jax
import optax

from segret_jax.config import OptimConfig

Path = tuple[str | int, ...]
ENCODER_NORMS = {"norm", "norms", "norm1", "norm2"}  # stem, downsample and block norms
DECODER_NORMS = {"zero_norm", "fuse_norm"}


def learning_rate_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return step → learning rate: poly decay from step 0, times the linear warmup.

    lr(t) = (lr − min)·(1 − t/T)^p + min; for t < W times 1 − (1 − t/W)(1 − r).
    """

    def schedule(step: Any) -> Any:
        span = config.learning_rate - config.min_learning_rate
        poly = span * (1 - step / steps) ** config.poly_power + config.min_learning_rate
        if config.warmup_steps == 0:
            return poly
        remaining = jax.numpy.maximum(1 - step / config.warmup_steps, 0)
        return poly * (1 - remaining * (1 - config.warmup_ratio))

    return schedule


def parameter_rule(path: Path) -> tuple[float, bool]:
    """Return (learning rate multiplier, whether weight decay applies) for one parameter."""
    modules = set(map(str, path))
    if path[0] == "encoder" and modules & ENCODER_NORMS:
        return 0.1, False
    return 1.0, not modules & DECODER_NORMS


def make_optimizer(config: OptimConfig, params: Any, steps: int) -> optax.GradientTransformation:
    """Build AdamW for a tree of parameters (only its structure is used).

    Decay is decoupled: p ← p − lr·rule·(m̂/(√v̂ + ε) + decay·p).
    """
    rules = jax.tree_util.tree_map_with_path(
        lambda path, _: parameter_rule(_keys(path)) if config.norm_rules else (1.0, True), params
    )
    multipliers, decays = (
        jax.tree.map(lambda rule: rule[i], rules, is_leaf=lambda x: isinstance(x, tuple))  # noqa: B023
        for i in range(2)
    )
    scale_by_rule = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, multipliers)
    )
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        scale_by_rule,
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
    )


def _keys(path: tuple) -> Path:
    return tuple(entry.key for entry in path)
