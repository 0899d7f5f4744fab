"""The README's promises that a test can hold."""

import re
from pathlib import Path

import pytest

from segret_jax.cli.summary import MODELS, published_model
from segret_jax.models.families import get_family
from segret_jax.models.flops import Cost
from tests.test_recipes import NAMES, NUM_PARAMS, TABLE

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


@pytest.mark.parametrize("file", ["README.md", "docs/models.md"])
def test_the_table_of_models_is_that_of_the_counts_and_of_the_recipes(file: str):
    page = (ROOT / file).read_text(encoding="utf-8")
    for model, (family, variant) in MODELS.items():
        if family not in NAMES:  # it has no recipes
            continue
        counts = get_family(family).load().costs.count(published_model(model), 150, (512, 512))
        cost = sum(counts.values(), Cost())
        operations = (cost.mult_adds + cost.attention + cost.elementwise) / 1e9
        recipes = [f"{family}_{variant}_{name}" for name in ("ade", "cityscapes", "coco_stuff164k")]
        if family == "segret":
            recipes = [f"{name}_{variant}" for name in ("ade", "cityscapes", "coco_stuff10k")]
        scores = " | ".join(f"{float(TABLE[name].published.split()[0]):.1f}" for name in recipes)
        name = rf"\| \[{NAMES[family]}-{variant}\]\(https://[^)]*\) "
        row = f"| {NUM_PARAMS[model]} M | {operations:.1f} G | {scores} |"
        assert re.search(name + re.escape(row), page), row
