"""The fingerprint of an evaluation: what must agree for two scores to be compared.

mIoU changes by a point or more with the size of the network's input, the scales, the flip, the
images and the meaning of their labels. So every result records these settings, and its `id` changes
with each of them. Settings that may differ, such as the weights, are recorded beside them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64, UInt8

from segret_jax import __version__
from segret_jax.config import Config, EvalConfig, ModelConfig
from segret_jax.data.class_table import ClassTable
from segret_jax.digests import PACKAGE, code_digest, digest, parts_digest, weights_digest
from segret_jax.models.families import get_family
from segret_jax.settings import flatten, rules


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
    must_agree |= {
        "num_images": len(names),
        "labels": parts_digest([label_pixels[order].tobytes()]),
    }
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
