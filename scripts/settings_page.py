"""Write docs/settings.md: every setting with its default, its values and its meaning.

    python -m scripts.settings_page

The page is made from the fields of `segret_jax.config.Config`, their rules and their docstrings;
`tests/test_site.py` compares it with them.
"""

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
from pathlib import Path
from typing import Any

from segret_jax.config import Config
from segret_jax.models.families import FAMILIES
from segret_jax.settings import Rules

PAGE = Path(__file__).parent.parent / "docs/settings.md"

INTRODUCTION = """\
# Settings

Each setting of a run is given on the command line by its key, as in

    segret train --config ade_tiny --config.train.batch_size=4 --config.data.crop=256,256

or is set by a file in `configs/`, whose `get_config()` returns a `Config`. The defaults below are
those of `Config()`; a recipe changes some of them. `config.json` in a run's folder holds all values
of the run.

Sizes are (height, width) unless the text says otherwise. Marks:

- **R**: a resumed run may have another value; all other settings stay as they were.
- **A**: the value 0 is replaced to fit data and machine when `train.minutes` is above 0
  (`--config own`).
- **W**: weights mean something only to a model with the same value.
"""


def attribute_docstrings(group: type) -> dict[str, str]:
    """Return the text below each field of a dataclass, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0].body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def written(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(written, value)) or "()"
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def values(rules: Rules, default: Any) -> str:
    """Return which values a setting may have."""
    if rules.choices:
        return ", ".join(f"`{choice}`" for choice in rules.choices)
    if isinstance(default, bool):
        return "`true`, `false`"
    kind = "text" if isinstance(default, str) else ""
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in (
            (">", rules.above), ("≥", rules.minimum), ("≤", rules.maximum), ("<", rules.below)
        )
        if not math.isinf(bound)
    ]  # fmt: skip
    if rules.entry is not None:
        kind = "any number of values"
    return ", ".join(filter(None, [kind, *bounds])) or "a number"


def table(group: type, prefix: str) -> str:
    """Return the table of a group's own settings."""
    texts, lines = attribute_docstrings(group), []
    for field in dataclasses.fields(group):
        if "rules" not in field.metadata:
            continue
        rules = field.metadata["rules"]
        marks = {"R": rules.may_change, "A": rules.sized, "W": rules.shared}
        cells = (
            f"`{prefix}{field.name}`", texts[field.name], f"`{written(field.default)}`",
            values(rules, field.default), " ".join(mark for mark in marks if marks[mark]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["| key | meaning | default | values | marks |", "| --- " * 5 + "|", *lines])


def section(title: str, group: type, prefix: str) -> str:
    """Return the heading, the docstring and the table of a group."""
    return f"## {title}\n\n{inspect.getdoc(group)}\n\n{table(group, prefix)}\n"


def page() -> str:
    """Return the whole page."""
    groups = {
        field.name: type(getattr(Config(), field.name))
        for field in dataclasses.fields(Config)
        if "rules" not in field.metadata
    }
    sections = [section("The run", Config, "")]
    for name, group in groups.items():
        sections.append(section(f"`{name}`", group, f"{name}."))
        if name == "model":
            for family, entry in FAMILIES.items():
                sections.append(
                    section(f"`model.settings` of {family}", entry.settings, "model.settings.")
                )
    return "\n".join([INTRODUCTION, *sections])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
