"""The page: complete, escaped, small, without a network, and never a reason to stop a training."""

import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from segret_jax.evaluation import compare
from segret_jax.pages import page as pages
from segret_jax.report import page
from segret_jax.report.gather import gather
from tests.report.made_up import HOSTILE, table_of, write_log, write_result, write_run

MAX_BYTES = 10_000_000


class Elements(HTMLParser):
    """Collects the elements of a page that are not Plotly's text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    return parser


def figures(text: str) -> dict[str, dict]:
    """Return the charts of a page by id, parsed."""
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', text, re.S)
    return {name: json.loads(content) for name, content in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "whole", names=(HOSTILE, "road"))


def test_a_page_holds_every_section_and_loads_nothing(whole: Path):
    before = time.process_time()
    file = page.write(whole)
    assert time.process_time() - before < 2
    text = file.read_text(encoding="utf-8")
    assert 4_800_000 < len(text.encode()) < MAX_BYTES
    found = elements(text)
    assert [one["id"] for one in found.tags("section")] == [
        "training", "classes", "confusions", "pictures", "settings", "protocol",
    ]  # fmt: skip
    assert {"loss-figure", "miou-figure", "bars-figure", "matrix-figure"} <= figures(text).keys()
    for _, attributes in found.found:
        for key in ("src", "href", "data", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    (policy,) = [one for one in found.tags("meta") if one.get("http-equiv")]
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:")
    addresses = re.findall(r"url\((.{10})", text.replace(pages.PLOTLY.read_text(), ""))
    assert set(addresses) == {"data:image"}


def test_hostile_names_are_text_and_no_elements(whole: Path):
    text = page.run_page(gather(whole))
    found = elements(text)
    assert found.tags("img") == []
    assert len(found.tags("script")) == text.count("<script")
    assert len(re.findall(r"</script>", text)) == len(found.tags("script"))
    options = [one for one in found.tags("option") if one.get("data-name") == HOSTILE]
    assert len(options) == 1


def test_pictures_say_their_rank_among_all_images(whole: Path):
    run = gather(whole)
    found = elements(page.run_page(run)).tags("article")
    scores = [json.loads(str(one["data-scores"])) for one in found]
    assert run.result is not None
    expected = 100 * run.result.images.mean_iou
    assert sorted(one["all"][0] for one in scores) == pytest.approx(sorted(expected), abs=0.051)
    assert sorted(one["all"][1] for one in scores) == [1, 2, 3, 4, 5, 6]
    assert {one["all"][2] for one in scores} == {6}
    best = max(scores, key=lambda one: one["all"][0])
    assert best["all"][1] == 1


def test_the_subtitle_names_model_dataset_and_step(whole: Path):
    assert "; scores at step 40</p>" in page.run_page(gather(whole))


def test_settings_are_compared_with_the_recipe(whole: Path):
    text = page.run_page(gather(whole))
    assert "Settings that differ from the recipe demo" in text
    assert re.search(r"<td>optim.learning_rate</td><td[^>]*>0.0001</td><td>0.002</td>", text)


@pytest.mark.parametrize("evaluations", [(), (40,)])
def test_a_run_with_one_evaluation_or_none_has_its_page(tmp_path: Path, evaluations):
    write_log(tmp_path, evaluations=evaluations)
    if evaluations:
        write_result(tmp_path, table_of(3), num_images=1)
    found = figures(page.write(tmp_path).read_text(encoding="utf-8"))
    assert ("miou-figure" in found, "bars-figure" in found) == 2 * (bool(evaluations),)
    assert "loss-figure" in found


def test_150_classes_stay_below_ten_megabytes(tmp_path: Path):
    write_result(tmp_path, table_of(150), num_images=12, absent=3)
    text = page.write(tmp_path).read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_BYTES
    found = figures(text)
    assert len(found["matrix-figure"]["data"][0]["z"]) == 25
    assert len(found["matrix2-figure"]["data"][0]["z"]) == 150


def test_pictures_that_are_too_large_are_left_out(whole: Path, monkeypatch):
    from segret_jax.report import pictures

    whole_size = sum(one.num_bytes for one in pictures.gallery(gather(whole)))
    monkeypatch.setattr(pictures, "MAX_BYTES", whole_size // 2)
    fewer = pictures.gallery(gather(whole))
    assert 0 < len(fewer) < 6
    assert sum(one.num_bytes for one in fewer) <= whole_size // 2


def test_a_fault_is_a_line_and_the_training_goes_on(whole: Path, tmp_path: Path):
    lines: list[str] = []
    page.try_write(tmp_path / "nowhere", lines.append)
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "report.html.partial").mkdir()
    page.try_write(folder, lines.append)
    assert re.match(r"no report: .*nowhere is no folder.*; segret report .* later", lines[0])
    assert "cannot write" in lines[1]
    assert all("\n" not in line for line in lines)


def test_an_unforeseen_fault_is_a_line_too(whole: Path, monkeypatch):
    monkeypatch.setattr(page, "run_page", lambda run: 1 / 0)
    lines: list[str] = []
    page.try_write(whole, lines.append)
    assert lines == [f"no report: division by zero; segret report {whole} writes it later"]


def test_side_by_side_gives_the_verdict_of_compare(whole: Path, tmp_path: Path):
    other = write_run(tmp_path / "whole", names=(HOSTILE, "road"), seed=3, learning_rate=1e-3)
    a, b = gather(whole), gather(other)
    assert a.result is not None
    assert b.result is not None
    verdict = compare.difference(a.result, b.result).splitlines()[2]
    text = page.side_by_side([a, b])
    assert a.name == str(whole)  # both are named "whole"
    assert verdict in text
    assert "<td>optim.learning_rate</td><td>0.002</td><td>0.001</td>" in text
    assert [trace["name"] for trace in figures(text)["loss-figure"]["data"]] == [a.name, b.name]
    assert len(text.encode()) < MAX_BYTES


def test_side_by_side_of_other_classes_and_of_no_result(whole: Path, tmp_path: Path):
    other = write_run(tmp_path / "other", num_classes=3)
    write_log(tmp_path)
    text = page.side_by_side([gather(whole), gather(other), gather(tmp_path)])
    assert text.count("<b>Not comparable</b>") == 2
    assert "has no scores that can be read" in text
    assert len(figures(text)["bars-figure"]["data"]) == 1


def test_side_by_side_shows_the_pictures_of_all_runs(whole: Path, tmp_path: Path):
    other = write_run(tmp_path / "other", names=(HOSTILE, "road"), seed=3)
    found = elements(page.side_by_side([gather(whole), gather(other)]))
    assert len(found.tags("article")) == 6
    labels = [one["aria-label"] for one in found.tags("div") if one.get("role") == "img"]
    assert [str(label).split(",")[0] for label in labels[:4]] == [
        "image",
        "label",
        "whole",
        "other",
    ]
