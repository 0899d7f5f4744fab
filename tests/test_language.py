"""Names are the field's, and the spelling is American."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXTS = ("segret_jax", "configs", "tests", "docs", "examples", "scripts", "benchmarks", ".github")
WORD_LISTS = (Path("tests/coined_names.txt"), Path("tests/british_spellings.txt"))
FROM_LIBRARIES = (".cancelled(",)  # concurrent.futures


def lines_of(file: Path) -> list[str]:
    """Return the lines of a list that are not comments."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


COINED = dict(line.split(" -> ") for line in lines_of(WORD_LISTS[0]))
BRITISH = re.compile("|".join(lines_of(WORD_LISTS[1])), re.IGNORECASE)


def texts() -> list[Path]:
    """List the project's own pages and sources, relative to its root."""
    inside = [file for folder in TEXTS for file in (ROOT / folder).rglob("*")]
    found = [*ROOT.glob("*.*"), ROOT / "Makefile", *inside]
    endings = {".py", ".ipynb", ".md", ".toml", ".txt", ".yml", ".sh", ".sbatch", ""}
    files = {file.relative_to(ROOT) for file in found if file.is_file() and file.suffix in endings}
    return sorted(files - {*WORD_LISTS, Path("tests/test_language.py")})


def defined_names(source: str) -> Iterator[str]:
    """Yield every identifier that a module defines."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name


@pytest.mark.parametrize("file", sorted((ROOT / "segret_jax").rglob("*.py")), ids=lambda f: f.name)
def test_no_name_is_coined(file: Path):
    names = set(defined_names(file.read_text(encoding="utf-8")))
    coined = {name: COINED.get(name) or COINED.get(name.lstrip("_")) for name in names}
    assert {name: term for name, term in coined.items() if term} == {}


def test_names_of_every_kind_are_found():
    source = (
        "class A:\n def b(self, c):\n  self.d = e = 1\n  for f in c: pass\n"
        "import x as g\ntry: pass\nexcept E as h: pass\n"
        "match g:\n case [i, *j]: pass"
    )
    assert set(defined_names(source)) == {"A", "b", "self", *"cdefghij"}


def test_the_spelling_is_american():
    found = []
    for file in texts():
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1):
            for library in FROM_LIBRARIES:
                line = line.replace(library, "")
            found += [f"{file}:{number}: {match[0]}" for match in BRITISH.finditer(line)]
    assert found == []


@pytest.mark.parametrize(
    "word", ["initialised", "colours", "Neighbouring", "grey", "centre", "labelled"]
)
def test_british_words_are_seen(word: str):
    assert BRITISH.search(f"an {word} thing")
