"""The certificate: each stage's map and the logits of a model against a reference.

The reference is tensors captured from the PyTorch model or, without any, a float64 forward of the
same weights. Errors are relative to the RMS of the expected values. A wrong tensor shows in the
first stage that uses it and usually in all that follow.
"""

import functools
import hashlib
import io
import math
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32

from segret_jax import __version__
from segret_jax.digests import PACKAGE, code_digest, weights_digest
from segret_jax.errors import InputError
from segret_jax.models.config import ModelConfig, model_name
from segret_jax.models.factory import abstract
from segret_jax.models.families import get_family
from segret_jax.models.forward import stage_maps
from segret_jax.models.kernels import platform_of
from segret_jax.settings import flatten

TOLERANCE = 1e-4  # of the largest error of a float32 forward; 1e-5 is typical
TEST_SIZE = 136, 200  # of the input without a reference: no multiples of 32, if admissible
MAX_SIDE = 2**14  # of `input_shape`: one that is damaged would take all memory

Outputs = dict[str, np.ndarray]  # by stage, NHWC; a classifier's logits are [b, k]


class Case(NamedTuple):
    """One input of a reference, NHWC, with the outputs expected of it."""

    name: str
    image: Float32[np.ndarray, "b H W 3"]
    expected: Outputs


def noise(name: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Return standard normal numbers that depend on the name alone.

    They come from NumPy's RandomState, seeded with the CRC-32 of the name.
    """
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return generator.standard_normal(shape).astype(np.float32)


def read_reference(file: Path, stages: Collection[str]) -> list[Case]:
    """Read tensors captured from PyTorch.

    Args:
        file: An .npz with `N/input`, `N/logits` and perhaps other stages of each case N, in NCHW.
            `N/input_shape` instead of `N/input` means `noise("input/N", shape)`.
        stages: The names of the model's maps, the logits among them.

    Returns:
        The cases, in the order of the file.

    Raises:
        InputError: The file cannot be read, or holds other tensors.
    """
    others = ", ".join(stage for stage in stages if stage != "logits")
    form = "it needs `input` [b, 3, H, W] and `logits`" + f", and may hold {others}" * bool(others)
    form += "; of several cases 0/input, 0/logits, 1/input, …"
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            arrays = dict(stored)
    except Exception as error:  # NumPy's reader raises anything for a damaged file
        raise InputError(f"--reference {file} cannot be read as .npz ({error}); {form}") from error
    groups: dict[str, Outputs] = {}
    try:
        for key, array in arrays.items():
            if array.dtype.kind not in "fiu" or not array.size or not array.ndim:
                raise ValueError(f"{key} holds no numbers")
            name, _, tensor = key.rpartition("/")
            groups.setdefault(name, {})[tensor] = array
        if not groups:
            raise ValueError("it holds nothing")
        return [_case(name, tensors, stages) for name, tensors in groups.items()]
    except ValueError as error:
        raise InputError(f"--reference {file}: {error}; {form}") from error


def _case(name: str, tensors: Outputs, stages: Collection[str]) -> Case:
    """Return a case of a reference; ValueError if its tensors have other names or shapes."""
    shape = tensors.pop("input_shape", None)
    if shape is not None:
        is_valid = shape.dtype.kind != "f" and shape.shape == (4,)
        if not is_valid or shape.min() < 1 or shape.max() > MAX_SIDE:
            raise ValueError(f"input_shape is {shape.tolist()}")
        tensors["input"] = noise(f"input/{name}", tuple(shape.tolist()))
    if unknown := sorted(tensors.keys() - {"input", *stages}):
        raise ValueError(f"the unknown tensor {unknown[0]!r}")
    if missing := sorted({"input", "logits"} - tensors.keys()):
        raise ValueError(f"no {missing[0]!r}")
    for key, x in tensors.items():  # a classifier's logits are [b, k]
        is_flat = key == "logits" and x.ndim == 2
        if (x.ndim != 4 and not is_flat) or (key == "input" and x.shape[1] != 3):
            raise ValueError(f"{key} is {x.shape}")
    expected = {stage: _nhwc(tensors[stage]) for stage in stages if stage in tensors}
    return Case(name, _nhwc(tensors["input"]).astype(np.float32), expected)


def _nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def certify(
    model: ModelConfig, num_classes: int, variables: Any, *, reference: Path | None = None
) -> dict[str, Any]:
    """Compare a model with a reference.

    Args:
        model: The model's settings; `dtype` is ignored.
        num_classes: The number of classes of the logits.
        variables: The parameters and batch statistics.
        reference: A file for `read_reference`; by default a float64 forward is the reference.

    Returns:
        The certificate as plain values: "verdict" ("pass" or "fail"), "comparisons", and what
        identifies the weights, the code and the device.

    Raises:
        InputError: The reference cannot be read, or has other shapes than the model's outputs.
    """
    run = functools.partial(_forward, model, num_classes, variables)
    family = get_family(model.family)
    stages = family.load().stages
    if reference:
        comparisons = {}
        for case in read_reference(reference, stages):
            name = f"float32, case {case.name}" if case.name else "float32"
            comparisons[name] = compare(run(case.image, "float32"), case.expected)
    else:
        image = _nhwc(noise("input/verify", (1, 3, *map(family.admissible, TEST_SIZE))))
        exact = run(image, "float64")
        dtypes = ("float32", "bfloat16")
        comparisons = {dtype: compare(run(image, dtype), exact) for dtype in dtypes}
    return {
        **_verdict(comparisons, list(stages)),
        "stages": dict(stages),
        "tolerance": TOLERANCE,
        "compared_with": "tensors captured from PyTorch" if reference else "a float64 forward",
        "comparisons": comparisons,
        "model": f"{model_name(model)}, {num_classes} classes",
        "settings": flatten(model.settings),
        "weights": weights_digest(variables),
        "reference": hashlib.sha256(reference.read_bytes()).hexdigest() if reference else None,
        "code": code_digest(PACKAGE),
        "device": jax.devices()[0].device_kind,
        "matmul_precision": model.matmul_precision,
        "versions": {"segret_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
    }


def _verdict(comparisons: Mapping[str, dict[str, Any]], stages: list[str]) -> dict[str, Any]:
    """Judge the errors in float32; one that is not a number is wrong.

    "starts_in" names the first wrong stage and, before it, the stages missing in the reference
    since the last right one: each of them may be the cause.
    """
    judged = [c["errors"] for name, c in comparisons.items() if name.startswith("float32")]
    first = 0
    for i, stage in enumerate(stages):
        errors = [e[stage]["largest"] for e in judged if stage in e]
        if not all(error <= TOLERANCE for error in errors):
            return {"verdict": "fail", "starts_in": stages[first : i + 1]}
        first = i + 1 if errors else first
    return {"verdict": "pass", "starts_in": []}


def compare(outputs: Outputs, expected: Outputs) -> dict[str, Any]:
    """Return {"errors": {stage: {"largest", "rms"}}, "argmax": {"equal", "of"}}.

    Raises InputError if a shape is not the expected one.
    """
    errors = {}
    for stage, theirs in expected.items():
        ours = outputs[stage]
        if ours.shape != theirs.shape:
            raise InputError(
                f"{stage} of the reference has the shape {theirs.shape} (channels last), that of "
                f"the model {ours.shape}: give a reference of the same model and classes"
            )
        difference = ours.astype(np.float64) - theirs
        rms = max(_rms(theirs), np.finfo(np.float64).tiny)
        largest = float(np.abs(difference).max() / rms)
        errors[stage] = {"largest": largest, "rms": _rms(difference) / rms}
    equal = outputs["logits"].argmax(-1) == expected["logits"].argmax(-1)
    return {"errors": errors, "argmax": {"equal": int(equal.sum()), "of": equal.size}}


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _forward(
    model: ModelConfig, num_classes: int, variables: Any, image: np.ndarray, dtype: str
) -> Outputs:
    """Compute every stage in `dtype`; float64 on the CPU, since some devices do not have it."""
    in_float64 = dtype == "float64"
    device = jax.devices("cpu")[0] if in_float64 else jax.devices()[0]
    with jax.enable_x64(in_float64), jax.default_device(device):
        model = replace(model, dtype=dtype)
        graph = abstract(model, num_classes, platform=platform_of([device])).graph
        kind = np.float64 if in_float64 else np.float32
        arguments = jax.tree.map(lambda x: np.asarray(x, kind), (variables, image))
        return jax.tree.map(np.asarray, _program(graph)(*arguments))


@functools.cache
def _program(graph: nnx.GraphDef[Any]) -> Callable:
    return jax.jit(functools.partial(stage_maps, graph))


def to_text(certificate: dict[str, Any]) -> str:
    """Return a certificate as Markdown."""
    stages, tolerance = certificate["starts_in"], certificate["tolerance"]
    title = f"{certificate['model']}, against {certificate['compared_with']}"
    lines = [
        f"# {certificate['verdict'].upper()}: {title}\n",
        f"float32 passes where no value is further off than {tolerance:g} of the RMS; 1e-5 is "
        "typical.",
    ]
    if stages:
        suspects = "; or ".join(f"{stage}: {certificate['stages'][stage]}" for stage in stages)
        lines.append(f"\n**It goes wrong first in {suspects}.**")
    if len(stages) > 1:
        lines.append(f"\nWhich of them, a reference with {', '.join(stages[:-1])} would tell.")
    lines.append("\n| forward | stage | largest error / RMS | RMS of the error / RMS |")
    lines.append("| --- | --- | --- | --- |")
    for name, comparison in certificate["comparisons"].items():
        for part, error in comparison["errors"].items():
            lines.append(f"| {name} | {part} | {error['largest']:.1e} | {error['rms']:.1e} |")
    lines.append("")
    for name, comparison in certificate["comparisons"].items():
        equal, count = comparison["argmax"]["equal"], comparison["argmax"]["of"]
        lines.append(f"- arg-max, {name}: {equal:,} of {count:,} equal ({equal / count:.3%})")
    for key in ("settings", "device", "matmul_precision", "versions"):
        value = certificate[key]
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {key.replace('_', ' ')}: {text}")
    for key in ("weights", "reference", "code"):
        lines.append(f"- SHA-256 of {key}: {certificate[key] or 'none'}")
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """Return what JSON holds: it has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
