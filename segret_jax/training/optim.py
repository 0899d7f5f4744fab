"""AdamW with the released code's per-parameter rules, poly schedule and linear warmup."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from segret_jax.config import OptimConfig
from segret_jax.training.sharding import is_large

Path = tuple[str | int, ...]
Rule = Callable[[Path, Any], bool]  # of a parameter's path and array
ENCODER_NORMS = {"norm", "norms", "norm1", "norm2"}  # stem, downsample and block norms
DECODER_NORMS = {"zero_norm", "fuse_norm"}
# Learning rate multiplier, and whether weight decay applies, by group.
RULES = {"encoder_norms": (0.1, False), "decoder_norms": (1.0, False), "others": (1.0, True)}


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


def parameter_group(path: Path) -> str:
    """Return which of `RULES` is for a parameter."""
    modules = set(map(str, path))
    if path[0] == "encoder" and modules & ENCODER_NORMS:
        return "encoder_norms"
    return "decoder_norms" if modules & DECODER_NORMS else "others"


def is_large_leaf(path: Path, leaf: Any) -> bool:
    """Return whether the optimizer keeps a leaf for itself: by its shape alone."""
    return is_large(leaf.shape)


def join(tree: Any, keep: Rule = is_large_leaf) -> dict[str, Any]:
    """Return a tree of parameters (or of gradients, ...) with its small leaves packed into vectors.

    They are two thirds of all leaves (biases, norms, depthwise kernels) and hold 1.3 % of the
    numbers: one by one, each would cost the optimizer several kernels to compile and to launch.
    {"large": the tree with what is left of it, and a vector [n] for each of `RULES`}. This form
    is for memory only: a checkpoint holds one array for each parameter (`stored_state`).
    """
    large: dict[Path, Array] = {}
    small: dict[str, list[Array]] = {group: [] for group in RULES}
    for path, leaf in _leaves(tree):
        if keep(path, leaf):
            large[path] = leaf
        else:
            small[parameter_group(path)].append(leaf.ravel())
    vectors = {group: jnp.concatenate(leaves) for group, leaves in small.items() if leaves}
    return {"large": unflatten_dict(large), **vectors}


def split(joined: dict[str, Any], like: Any, keep: Rule = is_large_leaf) -> Any:
    """Undo `join`; `like` is a tree with the shapes of the one that was joined."""
    large, start, tree = flatten_dict(joined["large"]), dict.fromkeys(RULES, 0), {}
    for path, leaf in _leaves(like):
        if keep(path, leaf):
            tree[path] = large[path]
        else:
            group = parameter_group(path)
            end = start[group] + leaf.size
            tree[path] = joined[group][start[group] : end].reshape(leaf.shape)
            start[group] = end
    return unflatten_dict(tree)


def moments(state: optax.OptState, params: Any) -> dict[str, Any]:
    """Return the moments in an optimizer's state as trees like `params`."""
    adam: Any = state[0]
    return {"mu": split(adam.mu, like=params), "nu": split(adam.nu, like=params)}


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Build AdamW for trees of parameters; its moments are joined as `join` says.

    Decay is decoupled: p ← p − lr·rule·(m̂/(√v̂ + ε) + decay·p).
    """

    def rules(joined: dict[str, Any], which: int) -> dict[str, Any]:
        def of_large(path: tuple, _: Any) -> Any:
            return of_group(parameter_group(_keys(path)))

        def of_group(group: str) -> Any:
            return (RULES[group] if config.norm_rules else RULES["others"])[which]

        large = jax.tree_util.tree_map_with_path(of_large, joined["large"])
        return {"large": large} | {group: of_group(group) for group in joined if group in RULES}

    scale_by_rule = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, rules(updates, 0))
    )
    of_joined = optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=lambda joined: rules(joined, 1)),
        scale_by_rule,
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
    )

    def update(grads: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        updates, state = of_joined.update(join(grads), state, join(params))
        return split(updates, params), state

    return optax.GradientTransformation(lambda params: of_joined.init(join(params)), update)


def _leaves(tree: Any) -> list[tuple[Path, Any]]:
    return [(_keys(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _keys(path: tuple) -> Path:
    return tuple(entry.key for entry in path)
