"""What a run leaves in its folder."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def leaves(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Everything in a checkpoint, read by Orbax alone."""
    folder, found = workdir / "checkpoints" / str(step), {}
    for item in ("model", "training"):
        stored = ocp.StandardCheckpointHandler().metadata(folder / item).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(folder / item, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found
