"""predict.py over folders as they are in life: what it reads, what it writes, what it leaves."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segret_jax.checkpoint import model as checkpoints
from segret_jax.data.class_table import load_class_table
from segret_jax.data.decode import decode_image, decode_label
from segret_jax.errors import InputError
from segret_jax.evaluation import inference
from segret_jax.visualize.pictures import colorize

CAMVID = load_class_table("camvid")


class Reads(inference.Predictor):
    """A predictor whose classes are the red of the pixels."""

    def __init__(self, *_: Any, **options: Any):
        pass

    def prepare(self, image: np.ndarray, *, padding: Any = None) -> Any:
        return image

    def scores(self, batch: Any) -> Any:
        return ReadScores(*batch)


class ReadScores:
    def __init__(self, image: np.ndarray):
        self.label_map = image[..., 0] % CAMVID.num_classes

    def predictions(self) -> list[inference.Prediction]:
        return [inference.Prediction(self.label_map, np.zeros(self.label_map.shape, bool))]

    def confidence(self) -> list[np.ndarray]:
        return [np.full(self.label_map.shape, 0.5, np.float16)]

    def probabilities(self) -> list[np.ndarray]:
        return [np.eye(CAMVID.num_classes, dtype=np.float16)[self.label_map]]


def picture(file: Path, *, size: tuple[int, int] = (32, 24), seed: int = 0, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    kind = {"format": "PNG"} if not file.suffix or file.suffix.lower() == ".png" else {}
    Image.fromarray(pixels).save(file, **(kind | options))
    return file


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# What is written


def test_label_maps_are_ids_in_the_colors_of_the_classes(run, tmp_path):
    picture(tmp_path / "in" / "a.jpg")
    run(tmp_path / "in", tmp_path / "out")
    ids = decode_label(tmp_path / "out" / "a_label.png")
    assert ids.shape == (24, 32)
    assert len(np.unique(ids)) == CAMVID.num_classes
    with Image.open(tmp_path / "out" / "a_label.png") as label:
        assert label.mode == "P"
        np.testing.assert_array_equal(np.asarray(label.convert("RGB")), colorize(ids, CAMVID))


def test_a_file_of_the_user_is_never_replaced(run, tmp_path):
    picture(tmp_path / "x.jpg")
    picture(tmp_path / "x_label.png", seed=1)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"x_label\.png exists and is not an output of ours"):
        run(tmp_path, tmp_path)
    assert contents(tmp_path) == before


def test_a_users_file_in_another_folder_is_never_replaced(run, tmp_path):
    file = picture(tmp_path / "x.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x_overlay.png").write_text("my notes")
    with pytest.raises(InputError, match=r"x_overlay\.png exists and is not an output of ours"):
        run(file, tmp_path / "out")
    assert (tmp_path / "out" / "x_overlay.png").read_text() == "my notes"
    assert names(tmp_path / "out") == ["x_overlay.png"]


def test_a_second_run_replaces_its_own_outputs_and_does_not_segment_them(run, tmp_path):
    picture(tmp_path / "x.jpg")
    run(tmp_path, tmp_path)
    first = contents(tmp_path)
    status, out, _ = run(tmp_path, tmp_path)
    assert status == 0
    assert "1 picture segmented" in out
    assert "not read, as written by segret predict or eval: 2" in out
    assert contents(tmp_path) == first
    picture(tmp_path / "x.jpg", seed=5)
    run(tmp_path, tmp_path)
    assert contents(tmp_path).keys() == first.keys()
    assert contents(tmp_path)["x_overlay.png"] != first["x_overlay.png"]


def test_outputs_of_a_picture_of_another_folder_are_not_replaced(run, tmp_path):
    run(picture(tmp_path / "a" / "x.jpg"), tmp_path / "out")
    before = contents(tmp_path / "out")
    for other in (picture(tmp_path / "b" / "x.jpg"), picture(tmp_path / "a" / "x.png")):
        with pytest.raises(
            InputError, match=r"x_overlay\.png was made from another picture, x\.jpg"
        ):
            run(other, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_pictures_that_differ_in_their_ending_get_outputs_of_their_own(run, tmp_path):
    for name in ("a.jpg", "a.x.jpg", "a.png", "b.jpg", "straße.jpg", "strasse.jpg"):
        picture(tmp_path / "in" / name)
    run(tmp_path / "in", tmp_path / "out")
    stems = ("a.jpg", "a.png", "a.x", "b", "straße", "strasse")
    assert names(tmp_path / "out") == sorted(
        f"{stem}_{kind}.png" for stem in stems for kind in ("label", "overlay")
    )


@pytest.mark.parametrize(
    ("one", "other"), [("A.jpg", "a.jpg"), ("e\u0301.jpg", "\u00e9.jpg"), ("a.jpg", "a.JPG")]
)
def test_names_that_collide_on_some_file_systems_are_rejected(run, tmp_path, one, other):
    picture(tmp_path / "in" / one)
    picture(tmp_path / "in" / other)
    if len(names(tmp_path / "in")) == 1:
        pytest.skip("this is such a file system")
    with pytest.raises(InputError, match="would be written to the same files: rename one"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_reported_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_model", lambda *_: pytest.fail("the model was read"))
    file = picture(tmp_path / "x.jpg")
    for out in (file, file / "out"):
        with pytest.raises(InputError) as error:
            run(file, out)
        remedy = f"{file} is a file; choose another folder"
        assert str(error.value) == f"cannot write to --out {out}: {remedy}"


ALL = "overlay,label,color,confidence,probabilities,json,polygons,coco"


def test_outputs_of_every_format_are_replaced_and_not_read(run, tmp_path):
    picture(tmp_path / "x.jpg")
    run(tmp_path, tmp_path, "--save", ALL)
    first = contents(tmp_path)
    assert len(first) == 1 + len(ALL.split(","))
    status, out, _ = run(tmp_path, tmp_path, "--save", ALL)
    assert status == 0
    assert out.splitlines()[1:] == ["not read, as written by segret predict or eval: 8"]
    assert contents(tmp_path) == first
    picture(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.json was made from another picture, x\.jpg"):
        run(tmp_path / "x.png", tmp_path, "--save", "json")


@pytest.mark.parametrize(
    ("name", "save"),
    [("x.json", "json"), ("x.geojson", "polygons"), ("x_probabilities.npz", "probabilities")],
)
def test_a_users_file_of_any_kind_is_never_replaced(run, tmp_path, name, save):
    file = picture(tmp_path / "x.jpg")
    (tmp_path / name).write_text('{"mine": "Software"}')
    with pytest.raises(InputError, match="exists and is not an output of ours"):
        run(file, tmp_path, "--save", save)
    assert (tmp_path / name).read_text() == '{"mine": "Software"}'


def test_names_of_classes_change_the_overlay_alone(run, tmp_path):
    large = np.zeros((60, 90, 3), np.uint8)
    Image.fromarray(large).save(tmp_path / "x.png")
    for out, options in (("plain", ()), ("named", ("--names",))):
        run(tmp_path / "x.png", tmp_path / out, *options)
    plain, named = (contents(tmp_path / out) for out in ("plain", "named"))
    assert plain["x_label.png"] == named["x_label.png"]
    assert plain["x_overlay.png"] != named["x_overlay.png"]


def test_pictures_of_one_name_from_different_folders_get_folders(run, tmp_path):
    a, b = picture(tmp_path / "a" / "x.jpg"), picture(tmp_path / "b" / "x.jpg", seed=1)
    other = picture(tmp_path / "b" / "y.jpg")
    run(a, tmp_path / "out", b, other, "--save", "label")
    found = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.png")}
    assert found == {"a/x_label.png", "b/x_label.png", "y_label.png"}
    for file in (a, b):
        ids = decode_label(tmp_path / "out" / file.parent.name / "x_label.png")
        np.testing.assert_array_equal(ids, ReadScores(decode_image(file)).label_map)


def test_unknown_and_unsuitable_formats_are_rejected_before_the_start(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_model", lambda *_: pytest.fail("the model was read"))
    file = picture(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="unknown format 'lable': did you mean 'label'"):
        run(file, tmp_path / "out", "--save", "overlay,lable")
    with pytest.raises(InputError, match="no format is named"):
        run(file, tmp_path / "out", "--save", ",")
    with pytest.raises(InputError, match="19 classes of Cityscapes; this model has 11 of camvid"):
        run(file, tmp_path / "out", "--save", "cityscapes")
    assert not (tmp_path / "out").exists()


# What is read


def test_files_folders_and_patterns_are_read_together_and_once(run, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.png", "deep/d.jpg", "deep/deeper/e.jpg", "[1].png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    out = tmp_path / "out"
    status, printed, _ = run(
        tmp_path / "*.*", out, "--names", tmp_path / "a.jpg", tmp_path / "deep"
    )
    assert status == 0
    assert "5 pictures segmented" in printed
    assert "not read, as no image of a known kind: 1 .txt" in printed
    assert names(out) == sorted(
        f"{name}_{kind}.png"
        for name in ("a", "b", "c", "d", "[1]")
        for kind in ("label", "overlay")
    )
    assert "1 picture segmented" in run(tmp_path / "[1].png", tmp_path / "named")[1]
    everywhere = tmp_path / "**" / "*.[jp][pn]g"
    assert "6 pictures segmented" in run(everywhere, tmp_path / "all", "--save", "label")[1]
    with pytest.raises(InputError, match=r"no images in .*none\*\.jpg"):
        run(tmp_path / "none*.jpg", out)


def test_subfolders_are_read_on_request_and_repeated(run, tmp_path):
    for name in ("a.jpg", "deep/a.jpg", "deep/deeper/b.jpg", ".hidden/c.jpg"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "deep" / "loop").symlink_to(tmp_path / "in")
    out = tmp_path / "in" / "out"
    for _ in range(2):
        printed = run(tmp_path / "in", out, "--recursive", "--save", "label")[1]
        assert "3 pictures segmented" in printed
    found = {str(file.relative_to(out)) for file in out.rglob("*.png")}
    assert found == {"a_label.png", "deep/a_label.png", "deep/deeper/b_label.png"}


def test_only_the_pictures_of_a_folder_are_segmented(run, tmp_path):
    folder = tmp_path / "in"
    picture(folder / "PHOTO.JPG")
    picture(folder / "scan.tiff")
    picture(folder / "old.jpg" / "inner.jpg")
    for name in ("._PHOTO.JPG", ".DS_Store", "Thumbs.db", "song.mp3", "data.h5", "page.pdf"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    (folder / "phone.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    status, out, err = run(folder, tmp_path / "out")
    assert status == 0
    assert "could not" not in err
    assert out.splitlines()[1:] == [
        "not read, as no image of a known kind: 1 .h5, 1 .heic, 1 .mp3, 1 .pdf, 1 special file "
        "(convert HEIC to JPEG first)",
        f"subfolders are not read (--recursive does), but hold images: {folder / 'old.jpg'}",
    ]
    assert names(tmp_path / "out") == [
        "PHOTO_label.png", "PHOTO_overlay.png", "scan_label.png", "scan_overlay.png",
    ]  # fmt: skip


def test_broken_pictures_are_skipped_and_listed(run, tmp_path):
    folder = tmp_path / "in"
    picture(folder / "a.jpg")
    picture(folder / "z.png")
    whole = picture(folder / "cut.png", size=(64, 64)).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("hello")
    (folder / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    status, out, err = run(folder, tmp_path / "out")
    assert status == 1
    assert "2 pictures segmented" in out
    lines = err[err.index("5 could not") :].splitlines()
    assert lines[0] == "5 could not be read:"
    for name, line in zip(("cut", "empty", "link", "self", "text"), lines[1:], strict=True):
        assert line.startswith(f"{folder / name}.")
    assert len(names(tmp_path / "out")) == 4


def test_without_a_readable_picture_the_exit_status_is_2(run, tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read as an image"):
        run(tmp_path / "a.jpg", tmp_path / "out")
    (tmp_path / "b.jpg").touch()
    status, out, err = run(tmp_path / "?.jpg", tmp_path / "out")
    assert status == 2
    assert out.startswith("0 pictures segmented")
    assert "2 could not be read:" in err


def test_heic_that_is_named_is_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    (tmp_path / "a.heic").touch()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_config", lambda *_: pytest.fail("the model was read"))
        with pytest.raises(InputError, match=r"a\.heic: HEIC is not read; convert it to JPEG"):
            run(tmp_path / "a.heic", tmp_path / "out")
    status, out, err = run(tmp_path / "a.heic", tmp_path / "out", picture(tmp_path / "a.jpg"))
    assert status == 1  # beside other pictures it is left out
    assert out.startswith("1 picture segmented")
    assert "a.heic: HEIC is not read" in err


def test_the_files_of_a_single_input_are_named(run, tmp_path):
    out = tmp_path / "out"
    _, printed, _ = run(picture(tmp_path / "a.jpg"), out)
    assert printed.endswith(f"written to {out / 'a_overlay.png'}, {out / 'a_label.png'}\n")
    picture(tmp_path / "b.jpg")
    _, printed, _ = run(tmp_path / "?.jpg", out)
    assert printed.startswith("2 pictures segmented with ")
    assert printed.endswith(f"written to {out}\n")


def test_additional_frames_are_reported(run, tmp_path):
    more = [Image.fromarray(np.full((24, 32, 3), value, np.uint8)) for value in (9, 200)]
    picture(tmp_path / "in" / "film.gif", save_all=True, append_images=more)
    picture(tmp_path / "in" / "pages.tif", save_all=True, append_images=more[:1])
    picture(tmp_path / "in" / "still.gif")
    _, out, _ = run(tmp_path / "in", tmp_path / "out")
    films = f"{tmp_path / 'in' / 'film.gif'} (3), {tmp_path / 'in' / 'pages.tif'} (2)"
    assert out.splitlines()[1:] == [f"of several frames only the first was read: {films}"]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_every_format_is_rotated_by_its_exif_data(run, tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    run(picture(tmp_path / "in" / name, size=(40, 20), exif=exif), tmp_path / "out")
    assert decode_label(tmp_path / "out" / "a_label.png").shape == (40, 20)


def test_a_folder_without_pictures_lists_its_files(run, tmp_path):
    with pytest.raises(InputError, match=f"^no images in {tmp_path}$"):
        run(tmp_path, tmp_path / "out")
    picture(tmp_path / "deep" / "deeper" / "a.jpg")
    with pytest.raises(InputError, match=f"^no images in {tmp_path}; subfolders are not read$"):
        run(tmp_path, tmp_path / "out")
    (tmp_path / "a.heic").touch()
    with pytest.raises(InputError, match=r"no images in .*: 1 \.heic \(convert HEIC to JPEG"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="there is no picture, video or folder"):
        run(tmp_path / "none", tmp_path / "out")
