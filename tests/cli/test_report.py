"""`segret report`: where the page goes, and what is said of a wrong argument."""

from pathlib import Path

import pytest

from segret_jax.cli import report
from segret_jax.errors import InputError
from tests.report.made_up import write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", num_classes=3)


def test_the_page_of_a_run_lies_in_its_folder_and_is_replaced(folder: Path, capsys):
    for _ in range(2):
        report.main([str(folder)])
        assert f"written to {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").stat().st_size > 1_000_000


def test_runs_are_set_side_by_side(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report.main([str(folder), str(folder)])
    report.main([str(folder), str(folder), "--out", "deep/both.html"])
    assert Path("comparison.html").is_file()
    assert Path("deep/both.html").is_file()


def test_damage_is_told(folder: Path, tmp_path: Path, capsys):
    other = write_run(tmp_path / "other", num_classes=3)
    (other / "gallery.npz").write_bytes(b"x")
    report.main([str(other)])
    assert "gallery.npz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder: give a run's, such as runs/demo"),
        (["."], "holds no run"),
        ([], "the following arguments are required: RUN"),
        ([".", "--out", "page.pdf"], "--out page.pdf: give a name that ends in .html"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        report.main(arguments)


def test_a_users_file_is_not_replaced(folder: Path, tmp_path: Path):
    mine = tmp_path / "mine.html"
    mine.write_text("<html>mine</html>")
    with pytest.raises(InputError, match=r"mine.html exists and is no page of segret"):
        report.main([str(folder), "--out", str(mine)])
    assert mine.read_text() == "<html>mine</html>"
