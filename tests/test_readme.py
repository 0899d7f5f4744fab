"""The README's promises that a test can hold."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_links_and_files_exist():
    links = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 4
    for page, _, heading in (link.partition("#") for link in links):
        assert (ROOT / page).exists(), page
        if heading:
            text = (ROOT / page).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert heading in [h.lower().replace(" ", "-") for h in headings], (page, heading)
