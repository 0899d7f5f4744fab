"""The packages import in one direction: each only what stands above it in `LAYERS`."""

import ast
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "segret_jax"
LAYERS = (
    "errors", "files", "normalization", "trees", "settings", "models", "config", "parallel", "data",
    "visualize", "doctor", "checkpoint", "run", "evaluation", "convert", "verify", "training",
    "replay", "aot", "api", "__init__", "cli", "__main__",
)  # fmt: skip


def imported(file: Path) -> set[str]:
    """The packages and modules of segret_jax that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "segret_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segret_jax."):
            found.add(str(node.module).split(".")[1])
    return {name if name in LAYERS else "__init__" for name in found}


def test_each_layer_imports_only_those_before_it():
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert own in LAYERS, f"{own} has no place in LAYERS"
        for name in imported(file):
            is_version = name == "__init__" and "import __version__" in file.read_text()
            if name != own and not is_version and LAYERS.index(name) > LAYERS.index(own):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_package_is_listed_for_the_wheel():
    """A forgotten one works in a checkout and is missing in the wheel."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {file.parent.relative_to(PACKAGE.parent) for file in PACKAGE.rglob("*.py")}
    listed = set(project["tool"]["setuptools"]["packages"]) - {"segret_jax.configs"}
    assert listed == {".".join(folder.parts) for folder in folders}
