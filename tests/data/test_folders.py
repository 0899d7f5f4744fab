"""Folders as they are in life: what is a file of the dataset, and what is said of the rest."""

import json
import logging
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.datasets import get_dataset, load_dataset
from segret_jax.data.folders import find_pairs
from segret_jax.data.layouts import DatasetSpec
from segret_jax.data.sources import FolderSource
from segret_jax.doctor import check as doctor
from segret_jax.errors import InputError

CAMVID = get_dataset("camvid")
CLASSES = [{"id": i, "name": f"c{i}", "color": "#010203"} for i in range(2)]


def write(*paths: Path) -> None:
    """Write a picture of 4x6 at each path: gray under `annotations` and for masks, else RGB."""
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_label = "annotations" in path.parts or "mask" in path.name or "label" in path.name
        shape = (4, 6) if is_label else (4, 6, 3)
        form = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower(), "PNG")
        Image.fromarray(np.full(shape, i % 2, np.uint8)).save(path, form)


def own(root: Path, **keys: object) -> DatasetSpec:
    path = root / "rooms.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"classes": CLASSES} | keys))
    return load_dataset(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The folder of the images of three valid pairs, a, b and c."""
    folder = tmp_path / "images" / "training"
    write(*(folder / f"{name}.jpg" for name in "abc"))
    write(*(labels_of(folder) / f"{name}.png" for name in "abc"))
    return folder


def labels_of(images: Path) -> Path:
    return images.parents[1] / "annotations" / "training"


def names(images: Path, spec: DatasetSpec = CAMVID) -> list[str]:
    return FolderSource(spec, images.parents[1], "training").names


def error(root: Path, spec: DatasetSpec = CAMVID) -> str:
    with pytest.raises(InputError) as caught:
        FolderSource(spec, root, "training")
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


# What is no file of the dataset


def test_files_of_systems_and_tools_are_ignored(images: Path) -> None:
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (images / name).write_bytes(b"\0\5\x16\7")
    for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir/a.jpg", ".AppleDouble"):
        write(images / folder / "x.jpg")
    (images / "old.jpg").mkdir()
    os.mkfifo(images / "pipe.jpg")
    assert names(images) == ["a", "b", "c"]


def test_a_folder_named_like_an_image_is_a_folder(images: Path) -> None:
    write(images / "old.jpg" / "d.jpg", labels_of(images) / "old.jpg" / "d.png")
    assert names(images) == ["a", "b", "c", "old.jpg/d"]


@pytest.mark.parametrize("target", [".", "..", "../..", "sub", "loop"])
def test_links_that_lead_back_are_not_followed(images: Path, target: str) -> None:
    write(images / "sub" / "d.jpg", labels_of(images) / "sub" / "d.png")
    os.symlink(target, images / "loop")
    os.symlink("..", images / "sub" / "up")
    if target == "sub":  # a folder that is linked twice is no loop
        os.symlink("sub", labels_of(images) / "loop")
        assert names(images) == ["a", "b", "c", "loop/d", "sub/d"]
    else:
        assert names(images) == ["a", "b", "c", "sub/d"]


def test_linked_folders_and_files_are_read(images: Path, tmp_path: Path) -> None:
    write(tmp_path / "disk" / "d.jpg", tmp_path / "disk" / "e.jpg")
    os.symlink(tmp_path / "disk", images / "more")
    write(*(labels_of(images) / f"more/{name}.png" for name in "de"))
    os.symlink(images / "a.jpg", images / "f.jpg")
    write(labels_of(images) / "f.png")
    assert names(images) == ["a", "b", "c", "f", "more/d", "more/e"]


def test_links_to_files_that_are_gone_are_named(images: Path) -> None:
    (images / "b.jpg").unlink()
    os.symlink("nowhere.jpg", images / "b.jpg")
    message = f"1 label without image (b) in {images} and {labels_of(images)}"
    assert f"{message} (links to files that do not exist: b.jpg)" in error(images.parents[1])


def test_pictures_of_other_kinds_are_listed_by_the_doctor(images: Path) -> None:
    for name in ("IMG_1.HEIC", "d.webp", "notes.txt", ".hidden.heic"):
        (images / name).touch()
    findings = doctor.check(CAMVID, images.parents[1], split="training", workers=1).findings
    (found,) = [finding for finding in findings if "not read" in finding.message]
    assert found.message.startswith(f"2 pictures in {images} without the ending .jpg, not")
    assert (found.severity, found.locations) == ("note", ("IMG_1.HEIC", "d.webp"))


def test_further_frames_are_listed_by_the_doctor(images: Path) -> None:
    frame = Image.new("RGB", (6, 4))
    frame.save(images / "a.jpg", "TIFF", save_all=True, append_images=[frame, frame])
    findings = doctor.check(CAMVID, images.parents[1], split="training", workers=1).findings
    (found,) = [finding for finding in findings if "frames" in finding.message]
    assert found.message == ("1 image with several frames; only the first is read")
    assert found.locations == (f"{images / 'a.jpg'} (3 frames)",)


# Endings


def test_endings_in_upper_case_are_the_same_endings(images: Path) -> None:
    (images / "a.jpg").rename(images / "a.JPG")
    (labels_of(images) / "b.png").rename(labels_of(images) / "b.PNG")
    source = FolderSource(CAMVID, images.parents[1], "training")
    assert source.names == ["a", "b", "c"]
    assert source.image_path(0) == images / "a.JPG"
    assert source.label_path(1) == labels_of(images) / "b.PNG"
    assert pickle.loads(pickle.dumps(source))[0]["label"].shape == (4, 6)
    assert source.size(0) == (4, 6)
    write(images / "a.jpg")
    assert "a.jpg" in (message := error(images.parents[1]))
    assert "a.JPG" in message
    assert "which are one name; remove or rename one" in message


@pytest.mark.parametrize("ending", [".png", ".jpeg", ".TIF"])
def test_another_ending_than_expected_says_what_lies_there_and_the_key(
    images: Path, ending: str
) -> None:
    for path in images.iterdir():
        path.rename(path.with_suffix(ending))
    lies = f"no *.jpg in {images} (3 {ending} files there (a{ending}, b{ending}, c{ending}), "
    read = "but only *.jpg is read: "
    key = f'"image_suffix": "{ending}"'
    assert error(images.parents[1]).startswith(
        f"{lies}{read}convert or rename to *.jpg, or set {key} in a JSON file of your own); "
        "camvid needs images/training/**/*.jpg with "
    )
    spec = own(images.parents[1], image_suffix=".jpg")
    assert error(images.parents[1], spec).startswith(
        f"{lies}{read}convert or rename to *.jpg, or set {key} in {spec.json_file}); "
    )
    assert names(images, own(images.parents[1], image_suffix=ending)) == ["a", "b", "c"]


def test_labels_of_another_ending_say_the_key(images: Path) -> None:
    labels = labels_of(images)
    for path in list(labels.iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    spec = own(images.parents[1], image_suffix=".jpg")
    message = error(images.parents[1], spec)
    assert message.startswith(
        f"no image of {images} has a label in {labels} (3 _mask.png files there"
    )
    assert f'rename to *.png, or set "label_suffix": "_mask.png" in {spec.json_file}' in message
    spec = own(images.parents[1], label_suffix="_mask.png")
    assert names(images, spec) == ["a", "b", "c"]


def test_a_folder_without_expected_files_names_those_present(tmp_path: Path) -> None:
    write(tmp_path / "images/training/x.tif", tmp_path / "images/training/y.bmp")
    (tmp_path / "annotations/training").mkdir(parents=True)
    message = error(tmp_path, own(tmp_path))
    assert message.startswith(f"no *.jpg or *.png or *.jpeg in {tmp_path}/images/training (")
    assert "1 .tif file there (x.tif)" in message
    assert "1 .bmp file there (y.bmp)" in message


def test_a_single_file_of_another_ending_is_named(images: Path) -> None:
    (images / "b.jpg").rename(images / "b.png")
    assert (
        f"1 label without image (b) in {images} and {labels_of(images)} (1 .png file there "
        "(b.png), but only *.jpg is read: convert or rename to *.jpg)"
    ) in error(images.parents[1])


def test_without_a_given_ending_the_most_frequent_one_is_read(images: Path) -> None:
    """One .jpg among .png, which are looked for later, is the odd one and not the others."""
    for name in "bc":
        (images / f"{name}.jpg").rename(images / f"{name}.png")
    message = error(images.parents[1], own(images.parents[1]))
    assert message.startswith("1 label without image (a) in ")
    assert "(1 .jpg file there (a.jpg), but only *.png is read: convert" in message


def test_other_files_of_an_archive_are_not_suggested(tmp_path: Path) -> None:
    write(tmp_path / "leftImg8bit/val/u/a_leftImg8bit.png")
    write(tmp_path / "leftImg8bit/val/u/b_leftImg8bit.png")
    write(tmp_path / "gtFine/val/u/a_gtFine_labelIds.png", tmp_path / "gtFine/val/u/b_color.png")
    with pytest.raises(InputError) as caught:
        FolderSource(get_dataset("cityscapes"), tmp_path, "validation")
    assert str(caught.value).startswith("1 image without label (u/b) in ")
    assert "b_color" not in str(caught.value)


# Images and labels in one folder


@pytest.mark.parametrize("keys", [{"image_suffix": ".png"}, {}])
def test_masks_beside_images_with_the_same_ending(tmp_path: Path, keys: dict[str, str]) -> None:
    folder = tmp_path / "all" / "training"
    write(*(folder / f"{name}.png" for name in "ab"))
    write(*(folder / f"{name}_mask.png" for name in "ab"))
    spec = own(
        tmp_path, images="all/{split}", labels="all/{split}", label_suffix="_mask.png", **keys
    )
    source = FolderSource(spec, tmp_path, "training")
    assert source.names == ["a", "b"]
    assert source.label_path(1) == folder / "b_mask.png"
    assert doctor.check(spec, tmp_path, split="training", workers=1).count("error") == 0
    (folder / "b_mask.png").unlink()
    assert error(tmp_path, spec).startswith("1 image without label (b) in ")


def test_images_with_the_longer_ending_beside_labels(tmp_path: Path) -> None:
    write(tmp_path / "all/a_photo.png", tmp_path / "all/label_b.png", tmp_path / "all/a.png")
    keys = {"images": "all", "image_suffix": "_photo.png", "labels": "all"}
    pairs = find_pairs(own(tmp_path, **keys), tmp_path, "training")
    assert (pairs.names, pairs.without_label, pairs.without_image) == (["a"], [], ["label_b"])


def test_one_ending_for_both_in_one_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "all/a.png", tmp_path / "all/a_mask.png")
    spec = own(tmp_path, images="all", labels="all")
    assert error(tmp_path, spec).startswith(
        f'images and labels are both *.png in {tmp_path}/all; set "label_suffix" in '
        f'{spec.json_file}, such as "_mask.png"; '
    )


def test_converted_labels_beside_maps_are_not_read_as_maps(tmp_path: Path) -> None:
    write(*(tmp_path / f"images/val2017/{name}.jpg" for name in "ab"))
    write(*(tmp_path / f"annotations/val2017/{name}.png" for name in "ab"))
    write(tmp_path / "annotations/val2017/a_labelTrainIds.png")
    source = FolderSource(get_dataset("coco_stuff164k"), tmp_path, "validation")
    assert (source.names, source.layout.name) == (["a", "b"], "stuffthingmaps")


# Cityscapes' two forms


def test_where_a_train_id_label_is_missing_all_come_from_label_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("u/a", "u/b", "v/c"):
        write(tmp_path / f"leftImg8bit/train/{name}_leftImg8bit.png")
        for kind in ("labelIds", "labelTrainIds"):
            write(tmp_path / f"gtFine/train/{name}_gtFine_{kind}.png")
    cityscapes = get_dataset("cityscapes")
    with caplog.at_level(logging.WARNING):
        assert FolderSource(cityscapes, tmp_path, "training").layout.name == "labelTrainIds"
        assert not caplog.records
        (tmp_path / "gtFine/train/u/b_gtFine_labelTrainIds.png").unlink()
        source = FolderSource(cityscapes, tmp_path, "training")
    assert (source.layout.name, source.names) == ("labelIds", ["u/a", "u/b", "v/c"])
    assert [record.getMessage() for record in caplog.records] == [
        "cityscapes, training: 1 of 3 images have no *_gtFine_labelTrainIds.png (u/b); all labels "
        "are read from *_gtFine_labelIds.png"
    ]
    (tmp_path / "gtFine/train/v/c_gtFine_labelIds.png").unlink()  # neither form is complete
    with pytest.raises(InputError, match=re.escape("1 image without label (u/b) in ")):
        FolderSource(cityscapes, tmp_path, "training")


def test_a_list_of_names_with_a_byte_order_mark(tmp_path: Path) -> None:
    import scipy.io

    write(tmp_path / "images/a.jpg")
    (tmp_path / "annotations").mkdir()
    scipy.io.savemat(tmp_path / "annotations/a.mat", {"S": np.ones((4, 6), np.uint8)})
    (tmp_path / "imageLists").mkdir()
    (tmp_path / "imageLists/train.txt").write_text("a\r\n", encoding="utf-8-sig")
    assert FolderSource(get_dataset("coco_stuff10k"), tmp_path, "training").names == ["a"]
