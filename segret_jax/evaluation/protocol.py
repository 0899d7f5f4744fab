"""The fingerprint of an evaluation: what must agree for two scores to be compared.

mIoU changes by a point or more with the size of the network's input, the scales, the flip, the
images and the meaning of their labels. So every result records these settings, and its `id` changes
with each of them. Settings that may differ, such as the weights, are recorded beside them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64, UInt8

from segret_jax import __version__
from segret_jax.config import Config, EvalConfig, ModelConfig
from segret_jax.data.class_table import ClassTable
from segret_jax.models.families import get_family
from segret_jax.settings import flatten, rules
from segret_jax.trees import named_leaves

PACKAGE = Path(__file__).parents[1]


def fingerprint(
    config: Config,
    table: ClassTable,
    *,
    split: str,
    names: Sequence[str],
    label_pixels: Int64[np.ndarray, "n k"],
    lookup: UInt8[np.ndarray, "256"] | None,
    is_stretched: bool,
    variables: Any,
    devices: Sequence[jax.Device],
) -> dict[str, Any]:
    """Return what identifies an evaluation, as plain values for JSON.

    Args:
        config: The settings of data, model and evaluation.
        table: The classes.
        split: The part of the dataset.
        names: The names of the images that were counted.
        label_pixels: The pixels of each class in each image's label, in the order of `names`.
        lookup: The class of each stored label value; None if no labels are stored.
        is_stretched: Whether any image was stretched to the shortest side that the network takes.
        variables: The parameters and batch statistics.
        devices: The devices of the evaluation.

    Returns:
        {"id", "must_agree", "may_differ"}; the id is a hash of `must_agree`.
    """
    must_agree, may_differ = _known(config, table, split, names, variables)
    order = np.argsort(np.array(names, object), kind="stable")
    must_agree |= {"num_images": len(names), "labels": _sha256([label_pixels[order].tobytes()])}
    if is_stretched:
        must_agree["min_side"] = get_family(config.model.family).admissible(1)
    may_differ |= {
        "stored_labels": None if lookup is None else digest(lookup.tolist()),
        "batch_size": config.eval.batch_size,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "jax": jax.__version__,
        "version": __version__,
        "code": code_digest(PACKAGE),
    }
    return {"id": identify(must_agree), "must_agree": must_agree, "may_differ": may_differ}


def known_in_advance(
    config: Config, table: ClassTable, *, split: str, names: Sequence[str], variables: Any
) -> dict[str, Any]:
    """Return the part of the fingerprint that is known before the evaluation, as plain values.

    A result may replace another one only if all of it agrees.

    Args:
        config: The settings of data, model and evaluation.
        table: The classes.
        split: The part of the dataset.
        names: The names of all images.
        variables: The parameters and batch statistics.
    """
    must_agree, may_differ = _known(config, table, split, names, variables)
    return json.loads(json.dumps(must_agree | may_differ))  # as it will be read from a file


def _known(
    config: Config, table: ClassTable, split: str, names: Sequence[str], variables: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that must agree and those that may differ, without the results."""
    dataset, evaluation = config.data.dataset, scored_settings(config.eval)
    if config.eval.mode != "slide":
        evaluation |= {"window": None, "stride": None}
    must_agree = {
        "dataset": Path(dataset).stem if dataset.endswith(".json") else dataset,
        "split": split,
        "images": digest(sorted(names)),
        "classes": digest([*table.class_names, *table.raw_ids]),
        "logits_resize": "bilinear twice: to the network's input, then to the image",
        **{k: [*v] if isinstance(v, tuple) else v for k, v in evaluation.items()},
    }
    may_differ = {
        "weights": weights_digest(variables),
        "data.root": config.data.root,
        **{f"model.{key}": value for key, value in scored_settings(config.model).items()},
    }
    return must_agree, may_differ


def scored_settings(settings: EvalConfig | ModelConfig) -> dict[str, Any]:
    """Return the settings that can change a score."""
    return {k: v for k, v in flatten(settings).items() if rules(settings)[k].scored}


def identify(must_agree: dict[str, Any]) -> str:
    """Return the protocol's id, a hash of the settings that must agree."""
    return digest(must_agree)[:12]


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value's JSON."""
    return _sha256([json.dumps(value, sort_keys=True).encode()])


def weights_digest(variables: Any) -> str:
    """Return the SHA-256 over path, shape, dtype and bytes of each array, sorted by path."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(variables).items()}
    return _sha256(
        part
        for path, leaf in sorted(leaves.items())
        for part in (f"{path} {leaf.shape} {leaf.dtype}".encode(), leaf.tobytes())
    )


def code_digest(package: Path) -> str:
    """Return the SHA-256 over the paths and contents of a package's Python files."""
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    return _sha256(
        part for path, file in sorted(files.items()) for part in (path.encode(), file.read_bytes())
    )


def _sha256(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())  # so that no byte can move to the next part
    return total.hexdigest()
