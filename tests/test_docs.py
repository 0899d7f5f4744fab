"""What the pages point to is there, above all the tests that prove the promises."""

import re
from pathlib import Path

import pytest

from benchmarks import aot_table

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert not re.search(r"@[A-Z_]+@", page.read_text())  # nothing left to fill in


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
