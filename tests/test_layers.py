"""The packages import in one direction: each only what stands above it in `LAYERS`."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from segret_jax.models.families import FAMILIES

PACKAGE = Path(__file__).parents[1] / "segret_jax"
LAYERS = (
    "errors", "files", "pages", "normalization", "trees", "digests", "settings", "models", "config",
    "parallel", "data", "visualize", "doctor", "checkpoint", "run", "evaluation", "prediction",
    "convert", "verify", "serve",
    "report", "training", "replay", "aot", "model_card", "api", "__init__", "cli", "__main__",
)  # fmt: skip


def imported(source: str) -> set[str]:
    """Return the layers that a module imports, anywhere in it, but for the version.

    Relative imports and imports by a computed name are errors, since they cannot be followed.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute | ast.Name):
            called = node.attr if isinstance(node, ast.Attribute) else node.id
            assert called not in ("import_module", "__import__"), f"line {node.lineno}: {called}"
        for name in names:
            package, *path = name.split(".")
            if package == "segret_jax" and path[:1] != ["__version__"]:
                found.add(path[0] if path and path[0] in LAYERS else "__init__")
    return found


def test_each_layer_imports_only_those_before_it():
    """A subpackage, such as data.shards, belongs to its package."""
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert own in LAYERS, f"{own} has no place in LAYERS"
        if own == "cli":  # imports subcommands by name, and may import everything
            continue
        for name in imported(file.read_text(encoding="utf-8")):
            if name != own and LAYERS.index(name) > LAYERS.index(own):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "from segret_jax.evaluation import metrics",
        "from segret_jax.evaluation.metrics import mean_iou",
        "from segret_jax import evaluation",
        "import segret_jax.evaluation.metrics",
        "import segret_jax.evaluation as e",
    ],
)
def test_every_form_of_import_is_seen(line: str):
    assert imported(f"def f():\n    {line}") == {"evaluation"}


@pytest.mark.parametrize(
    "line",
    ["from ..evaluation import metrics", "importlib.import_module(name)", "__import__(name)"],
)
def test_imports_that_cannot_be_followed_are_errors(line: str):
    with pytest.raises(AssertionError, match="line 1"):
        imported(line)


def test_names_of_the_package_itself_are_its_top():
    assert imported("from segret_jax import __version__") == set()
    assert imported("from segret_jax import __version__, load") == {"__init__"}


def test_every_package_is_listed_for_the_wheel():
    """A forgotten one works in a checkout and is missing in the wheel."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {file.parent.relative_to(PACKAGE.parent) for file in PACKAGE.rglob("*.py")}
    listed = set(project["tool"]["setuptools"]["packages"]) - {"segret_jax.configs"}
    hint = "pyproject.toml lists the packages of the wheel"
    assert listed == {".".join(folder.parts) for folder in folders}, hint


def test_settings_are_checked_without_jax():
    """Every family can be described before JAX is imported, which takes seconds."""
    check = "import sys, segret_jax.config; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n", "a module that segret_jax.config imports imports JAX"


def test_every_family_has_its_entry():
    found = {
        file.parent.name
        for file in PACKAGE.glob("models/*/__init__.py")
        if "FAMILY" in file.read_text(encoding="utf-8")
    }
    assert found == set(FAMILIES), "families are listed in segret_jax/models/families.py"
