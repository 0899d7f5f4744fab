"""The fingerprint of an evaluation: what must agree for two scores to be compared.

mIoU moves by a point or more with the size of the network's input, the scales, the flip, the
images and what their labels mean. So every result carries these settings, and its `id` changes
with each of them. What may differ, such as the weights, is recorded beside them.
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
from segret_jax.config import Config, EvalConfig
from segret_jax.data.class_table import ClassTable
from segret_jax.settings import flatten, rules
from segret_jax.trees import named_leaves

PACKAGE = Path(__file__).parents[1]


def fingerprint(
    config: Config,
    table: ClassTable,
    *,
    split: str,
    names: Sequence[str],
    label_areas: Int64[np.ndarray, "n k"],
    lookup: UInt8[np.ndarray, "256"] | None,
    variables: Any,
    devices: Sequence[jax.Device],
) -> dict[str, Any]:
    """Return {"id", "must_agree", "may_differ"} of plain values for JSON.

    `names` and `label_areas` (`ConfusionAccumulator.images.label`) are of the images that were counted, in
    one order; `lookup` says what stored label values mean, None where nothing is stored;
    `variables` are the parameters and batch statistics. `id` is a hash of `must_agree`.
    """
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    must_agree = {
        **_data_settings(config, table, split, names),
        **_settings(config.eval),
        "num_images": len(names),
        "labels": _sha256([label_areas[order].tobytes()]),
    }
    may_differ = {
        **_model_settings(config, variables),
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
    """Return what the fingerprint will say as far as it is known before the evaluation.

    A result may replace another only if all of it agrees.
    """
    known = {
        **_data_settings(config, table, split, names),
        **_settings(config.eval),
        **_model_settings(config, variables),
    }
    return json.loads(json.dumps(known))  # as it will be read from a file


def _data_settings(
    config: Config, table: ClassTable, split: str, names: Sequence[str]
) -> dict[str, Any]:
    dataset = config.data.dataset
    return {
        "dataset": Path(dataset).stem if dataset.endswith(".json") else dataset,
        "split": split,
        "images": digest(sorted(names)),
        "classes": digest([*table.class_names, *table.raw_ids]),
    }


def _model_settings(config: Config, variables: Any) -> dict[str, Any]:
    scored = rules(config.model)
    return {
        "weights": weights_digest(variables),
        "data.root": config.data.root,
        **{f"model.{k}": v for k, v in flatten(config.model).items() if scored[k].scored},
    }


def _settings(config: EvalConfig) -> dict[str, Any]:
    """Return how images are put before the network; windows only where they are used."""
    slide = config.mode == "slide"
    return {
        "resize_target": list(config.resize_target),
        "multiple_of": config.multiple_of,
        "logits_resize": "bilinear twice: to the network's input, then to the image",
        "mode": config.mode,
        "window": list(config.window) if slide else None,
        "stride": list(config.stride) if slide else None,
        "scales": list(config.scales),
        "flip": config.flip,
    }


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
