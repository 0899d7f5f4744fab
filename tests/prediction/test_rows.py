"""Folders of rows: what a killed process leaves, what another program wrote, other models."""

import io
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segret_jax.data.class_table import load_class_table
from segret_jax.errors import InputError
from segret_jax.prediction.on_ray import Resources, plan_resources
from segret_jax.prediction.rows import SCHEMA, RowFolder, error_row, row_of
from segret_jax.prediction.segmentation import Segmentation
from tests.cli.test_predict import ReadScores

CAMVID = load_class_table("camvid")
EXAMPLE = Path(__file__).parents[2] / "examples/rows_to_pictures.py"
NAME = f"x_{'0' * 32}_00000{{}}-0.parquet"  # as Ray names files


def segmentation() -> Segmentation:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    scores = ReadScores(image)
    return Segmentation(image, CAMVID, scores.label_map, scores)


def write(folder: Path, number: int, *rows: dict[str, Any]) -> Path:
    file = folder / NAME.format(number)
    pq.write_table(pa.Table.from_pylist([*rows], schema=SCHEMA), file)
    return file


def test_a_row_holds_label_shares_and_confidence():
    row = row_of("gs://b/x.jpg", segmentation())
    assert (row["height"], row["width"]) == (6, 8)
    with Image.open(io.BytesIO(row["label"])) as label:
        assert label.mode == "P"
        np.testing.assert_array_equal(np.asarray(label), segmentation().label_map)
        assert label.info["Source"] == "x.jpg"
    assert sum(one["share"] for one in row["classes"]) == pytest.approx(1)
    assert {one["mean_confidence"] for one in row["classes"]} == {0.5}
    assert all(CAMVID.class_names[one["id"]] == one["name"] for one in row["classes"])


def test_a_folder_in_a_bucket():
    folder = RowFolder("memory://b/rows/")
    folder.claim({"weights": "1"})
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row_of("/x.jpg", segmentation())], schema=SCHEMA), content)
    for number, whole in enumerate((content.getvalue().to_pybytes(), b"PAR1")):
        folder.store.pipe_file(f"{folder.store_path}/{NAME.format(number)}", whole)
    assert folder.finished() == {"/x.jpg": False}
    RowFolder("memory://b/rows").claim({"weights": "1"})
    with pytest.raises(InputError, match="another weights"):
        RowFolder("memory://b/rows").claim({"weights": "2"})
    folder.store.rm("/b", recursive=True)


def test_files_without_an_end_do_not_count_and_go(tmp_path):
    name = "rows [1]"
    folder = RowFolder(str(tmp_path / name))
    folder.claim({"weights": "1"})
    row = row_of("/x.jpg", segmentation())
    write(tmp_path / name, 0, row, error_row("/y.jpg", InputError("/y.jpg: bad")))
    cut = write(tmp_path / name, 1, row | {"path": "/z.jpg"})
    cut.write_bytes(cut.read_bytes()[:-7])
    (tmp_path / name / NAME.format(2)).touch()
    assert folder.finished() == {"/x.jpg": False, "/y.jpg": True}
    assert [*folder.failures()] == ["/y.jpg: bad"]
    assert not cut.exists()


def test_files_of_others_are_neither_used_nor_deleted(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(InputError, match="other Parquet files"):
        RowFolder(str(tmp_path)).claim({})
    (tmp_path / "mine.parquet").unlink()
    RowFolder(str(tmp_path)).claim({})
    for content in (b"", None):
        pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
        if content is not None:
            (tmp_path / "mine.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"mine\.parquet is"):
            RowFolder(str(tmp_path)).finished()
        assert (tmp_path / "mine.parquet").exists()


def test_another_model_or_setting_is_refused(tmp_path):
    settings = {"weights": "1", "eval.scales": (1.0,)}
    RowFolder(str(tmp_path)).claim(settings)
    RowFolder(str(tmp_path)).claim(settings)
    with pytest.raises(InputError, match="another weights \\(1 there, 2 here\\)"):
        RowFolder(str(tmp_path)).claim(settings | {"weights": "2"})
    with pytest.raises(InputError, match=r"eval\.flip"):
        RowFolder(str(tmp_path)).claim(settings | {"eval.flip": True})
    (tmp_path / "_segret.json").write_text("[")
    with pytest.raises(InputError, match="damaged"):
        RowFolder(str(tmp_path)).claim(settings)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to .*: (Not a directory|File exists)"):
        RowFolder(str(tmp_path / "file"))


def test_rows_become_pictures(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    row = row_of("/a/x.jpg", segmentation())
    write(rows, 0, row, row | {"path": "gs://b/../../x.jpg"}, error_row("/y.jpg", ValueError()))
    runpy.run_path(str(EXAMPLE))["main"](str(rows), str(tmp_path / "pictures"))
    found = sorted((tmp_path / "pictures").rglob("*.png"))
    assert [str(file.relative_to(tmp_path)) for file in found] == [
        "pictures/a/x.jpg.png",
        "pictures/gs/b/x.jpg.png",
    ]
    assert found[0].read_bytes() == row["label"]


@pytest.mark.parametrize(
    ("nodes", "cpus", "expected"),
    [
        ([{"CPU": 2}], None, (1, 2, 0)),
        ([{"CPU": 16}, {"CPU": 6}], None, (5, 4, 0)),
        ([{"CPU": 3}, {"CPU": 3}], 2, (2, 2, 0)),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 64}], None, (8, 4, 1)),
        ([{"CPU": 12, "GPU": 8}], None, (8, 1, 1)),
        ([{"CPU": 12, "GPU": 8}], 3, (4, 3, 1)),
    ],
)
def test_machines_are_divided_among_models(nodes, cpus, expected):
    assert plan_resources(nodes, cpus) == Resources(*expected)


@pytest.mark.parametrize("nodes", [[], [{"CPU": 4.0}, {"CPU": 3.0}], [{"GPU": 1, "CPU": 7.0}]])
def test_too_few_cpus_are_an_error_with_numbers(nodes):
    with pytest.raises(InputError, match=r"a model needs 8 CPU cores.* machine"):
        plan_resources(nodes, 8)
