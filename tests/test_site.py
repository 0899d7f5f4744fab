"""The documentation site: its pages are those of docs/, and the made one is up to date."""

import tomllib
from pathlib import Path
from typing import Any

from scripts import settings_page

ROOT = Path(__file__).parent.parent


def pages_in(entry: Any) -> list[str]:
    """Return the pages of an entry of the navigation, at any depth."""
    if isinstance(entry, str):
        return [entry]
    return [
        page
        for one in (entry.values() if isinstance(entry, dict) else entry)
        for page in pages_in(one)
    ]


def test_the_navigation_has_every_page_once():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    docs = ROOT / "docs"
    assert sorted(pages_in(nav)) == sorted(
        str(page.relative_to(docs)) for page in docs.rglob("*.md")
    )


def test_the_settings_page_is_that_of_the_settings():
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), (
        "run: python -m scripts.settings_page"
    )
