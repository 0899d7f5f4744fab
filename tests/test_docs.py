"""What the pages point to is there, above all the tests that prove the promises."""

import re
from pathlib import Path

import pytest

from benchmarks import aot_table
from segret_jax.cli import data, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    texts = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower() for heading in headings]
    slugs = [re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts]
    return {
        slug + (f"-{count}" if (count := slugs[:i].count(slug)) else "")
        for i, slug in enumerate(slugs)
    }


@each_page
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    missing = []
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", FENCED.sub("", text)):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []
    assert not re.search(r"@[A-Z_]+@", text)  # nothing left to fill in


@each_page
def test_commands_and_configs_exist(page):
    text = page.read_text(encoding="utf-8")
    code = "\n".join([*FENCED.findall(text), *re.findall(r"^ {4}.*$", text, re.M)])
    code += "\n".join(re.findall(r"`[^`]+`", FENCED.sub("", text)))
    for command, action in re.findall(r"(?<![\w.-])segret ([a-z]+)(?: ([a-z]+))?", code):
        assert command in main.COMMANDS, command
        assert command != "data" or action in data.COMMANDS, action
    configs = re.findall(r"--config ([a-z]\w*)", code)
    assert [name for name in configs if not (ROOT / f"configs/{name}.py").exists()] == []


def test_every_promise_names_a_test_that_is_there():
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "docs/reliability.md").read_text(), re.M)
    promises = [row for row in rows if row[0] not in ("promise", "---")]
    assert len(promises) > 15
    for promise, proof in promises:
        named = re.findall(r"`([^`]+)`", proof)
        assert named or "the same" in proof, promise
        for name in named:
            file, _, function = name.partition("::")
            found = [
                f
                for f in ROOT.glob("tests/**/test_*.py")
                if file == "…" or (f == ROOT / file if "/" in file else f.name == file)
            ]
            assert found, f"{name} of {promise!r}"
            if function:
                assert any(f"def {function}(" in f.read_text() for f in found), name


def test_the_tables_of_ahead_of_time_are_those_of_the_reports():
    folder = ROOT / "benchmarks/results/aot"
    page = (folder / "README.md").read_text()
    for table in aot_table.tables(sorted(folder.glob("*.json"))):
        assert table in page


def test_pictures_are_small():
    """They are part of every clone."""
    sizes = {file.name: file.stat().st_size for file in (ROOT / "docs").rglob("*.[pj][np]g")}
    assert len(sizes) > 2
    assert max(sizes.values()) < 200e3, sizes
    assert sum(sizes.values()) < 1e6, sizes
