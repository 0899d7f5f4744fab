"""The README's promises that a test can hold."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_what_it_points_to_is_there():
    links = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
