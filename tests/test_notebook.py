"""The notebook runs from top to bottom; it is committed without outputs."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"
SECONDS = 1200  # for a cell


def cells(kind: str) -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_it_has_no_outputs():
    for cell in cells("code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["source"]


def test_its_links_lead_somewhere():
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) >= 3
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.mark.slow
def test_it_runs_and_shows_pictures_and_a_finished_run(tmp_path: Path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("SEGRET_NOTEBOOK_STEPS", "10")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 5  # photographs, results, confidence
    assert any("| road |" in data.get("text/markdown", "") for data in shown)
    assert any("application/vnd.plotly.v1+json" in data for data in shown)
    printed = "".join(output["text"] for output in outputs if "text" in output)
    assert "% of the pixels are right" in printed
    run = tmp_path / "runs" / "first_steps"
    assert (run / "status").read_text().strip() == "finished"
    assert (run / "report.html").stat().st_size > 1e6
