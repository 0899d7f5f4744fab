"""The report of a conversion: the file, the leaf of each tensor, the tensors left out."""

import dataclasses
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segret_jax.convert.importing import Imported
from segret_jax.convert.tensors import TensorFile
from segret_jax.data.class_table import ClassTable
from segret_jax.errors import printable
from segret_jax.models.config import model_name

MAX_METADATA = 400  # characters on the terminal
OUTSIDE = "lies beside the state dict that was read, so it is no part of the model"


def make_report(
    path: Path,
    file: TensorFile,
    imported: Imported,
    table: ClassTable,
    *,
    allow: Sequence[str],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the report of a conversion as JSON values.

    Args:
        path: The file.
        file: The content of the file.
        imported: The model.
        table: The classes of the model.
        allow: The patterns of `--allow`.
        notes: Sentences on the classes.
    """
    found, leaves = imported.recognized, imported.leaves
    mapped = {name: leaf for name, leaf in leaves.items() if name not in imported.initialized}
    dtypes = {name: str(file.tensors[name].dtype) for name in mapped}
    numbers, filled = (
        sum(math.prod(shape) for _, shape in part.values()) for part in (leaves, mapped)
    )
    return {
        "file": path.absolute().name,
        "sha256": file.sha256,
        "format": file.format,
        "wrapper": file.wrapper,
        "other_wrappers": list(file.other_wrappers),
        "prefix": file.prefix,
        "model_name": model_name(found.model),
        "num_classes": found.num_classes,
        "classes": table.name,
        "implies": [*found.format.describe(found.model), *notes],
        "model": dataclasses.asdict(found.model),
        "numbers": numbers,
        "filled": filled,
        "filled_percent": 100 * filled / numbers,
        "dtypes": dict(Counter(dtypes.values())),
        "mapped": {
            name: {"leaf": "/".join(map(str, path)), "shape": list(shape), "dtype": dtypes[name]}
            for name, (path, shape) in mapped.items()
        },
        "dropped": imported.dropped | dict.fromkeys(file.beside, OUTSIDE),
        "initialized": imported.initialized,
        "allow": list(allow),
        "metadata": file.metadata,
    }


def summary(report: dict[str, Any]) -> str:
    """Format a report for the terminal."""
    where = f", under {report['wrapper']!r}" if report["wrapper"] else ""
    others = ", ".join(map(repr, report["other_wrappers"]))
    lines = [
        f"{report['file']}: {report['format']}{where}, sha256 {report['sha256'][:16]}...",
        *([f"  other state dicts in it: {others} (choose with --wrapper)"] if others else []),
        f"{report['model_name']}, {report['num_classes']} classes ({report['classes']})",
        *(f"  {sentence}" for sentence in report["implies"]),
        f"filled: {report['filled']:,} of {report['numbers']:,} numbers "
        f"({report['filled_percent']:.2f}%) from {len(report['mapped'])} tensors",
    ]
    if casts := [f"{n} of {dtype}" for dtype, n in report["dtypes"].items() if dtype != "float32"]:
        lines.append(f"converted to float32: {', '.join(casts)}")
    for what in ("dropped", "initialized"):
        lines += _grouped(what, report[what])
    if report["metadata"]:
        text = ", ".join(f"{key}: {value}" for key, value in report["metadata"].items())
        lines.append(textwrap.shorten(f"metadata: {text}", MAX_METADATA, placeholder=" …"))
    return "\n".join(map(printable, lines))


def _grouped(what: str, reasons: dict[str, str]) -> list[str]:
    """Return a line for each reason, with the number of tensors and the first."""
    groups = defaultdict(list)
    for name, reason in reasons.items():
        groups[reason].append(name)
    return [
        f"{what}: {names[0]}" + (f" and {len(names) - 1} more" * (len(names) > 1)) + f": {reason}"
        for reason, names in groups.items()
    ]
