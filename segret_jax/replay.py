"""Run a step that was not finite again: python -m segret_jax.replay runs/NAME/nonfinite_000123.

Training that stops for a loss or gradient which is not finite leaves such a folder. The step is
made again from it on one device, in float32 and in bfloat16, and the first tensors that are not
finite are named: the layer, the operation, the line. The last is the first with a nan; infinite
ones before it may be its cause, or do no harm. --config.KEY=VALUE changes a setting, to see whether
it would help. Exits with 0 if the step is finite in both, with 1 if not.
"""

import math
import sys
from pathlib import Path
from typing import Any

from segret_jax import cli
from segret_jax.errors import InputError

PRECISIONS = ("float32", "bfloat16")


def main(argv: list[str]) -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, help="nonfinite_STEP, or a run's folder with one")
    args, overrides = parser.parse(argv)

    from segret_jax.training import capture  # heavy imports, after the arguments

    captured = capture.load(_find(args.folder))
    config = cli.apply_overrides(captured.config, overrides)
    print(f"step {int(captured.state.step) + 1}, batch of {len(captured.batch['index'])} images")
    faults = _faulty_inputs(captured)
    for line in faults:
        print(f"not finite before the step: {line}")
    finite = [_replay(captured, config, dtype) for dtype in PRECISIONS]
    if all(finite) and not overrides:
        print(
            "The step is finite here. What differs is the machine: other devices, or versions of "
            "JAX, round another way"
        )
    sys.exit(0 if all(finite) else 1)


def _find(folder: Path) -> Path:
    if (folder / "config.json").is_file() and (folder / "state").is_dir():
        return folder
    found = sorted(folder.glob("nonfinite_*"))
    if not found:
        raise InputError(f"{folder} is no nonfinite_STEP, and holds none")
    return found[-1]


def _faulty_inputs(captured: Any) -> list[str]:
    """Name what is not finite of the state and of the batch."""
    import jax
    import numpy as np

    from segret_jax.training.optim import moments

    trees = {
        "parameters": captured.state.params,
        "batch statistics": captured.state.batch_stats,
        "optimizer's state": moments(captured.state.opt_state, captured.state.params),
        "batch": captured.batch,
    }
    return [
        f"{name}: {jax.tree_util.keystr(path, simple=True, separator='/')}"
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all()
    ]


def _replay(captured: Any, config: Any, dtype: str) -> bool:
    """Make the step in one precision, tell what comes out, and return whether it is finite."""
    import jax
    import jax.numpy as jnp
    import optax

    from segret_jax.models.kernels import compute_capability
    from segret_jax.training.nonfinite import nonfinite
    from segret_jax.training.state import abstract
    from segret_jax.training.step import batch_gradient, loss_function

    config.model.dtype = dtype
    train, state = config.train, captured.state
    graph, params, _ = abstract(config.model, captured.table.num_classes)
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, state.params):
        raise InputError("the settings given make another model than the one that was captured")
    capability = compute_capability(jax.local_devices())
    loss_of_part = loss_function(graph, train, regularize=True, capability=capability)
    gradient = jax.value_and_grad(loss_of_part, has_aux=True)
    parts = train.accumulate
    batch = {
        key: jnp.asarray(x.reshape(parts, -1, *x.shape[1:]) if parts > 1 else x)
        for key, x in captured.batch.items()
    }

    def step(state: Any, batch: Any) -> Any:
        grads, _, metrics = batch_gradient(gradient, state, batch, train)
        with jax.named_scope("gradient_norm"):
            return metrics["loss"], optax.tree.norm(grads)

    loss, norm = map(float, jax.jit(step)(state, batch))
    finite = math.isfinite(loss) and math.isfinite(norm)
    print(f"{dtype}: loss {loss:.6g}, gradient norm {norm:.6g}")
    if not finite:
        faults = nonfinite(step, state, batch)
        for number, fault in enumerate(faults, start=1):
            print(f"  {number}. {fault}")
        if not faults:
            print("  operation by operation all is finite: fused, they round another way")
    return finite


if __name__ == "__main__":
    cli.run(main)
