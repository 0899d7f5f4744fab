"""Pairing and reading of files; every fault must raise the message that names it."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from segret_jax.data.datasets import get_dataset
from segret_jax.data.sources import FolderSource
from segret_jax.errors import InputError
from tests.data.test_decode import pixels

ADE = get_dataset("ade20k")


def write_pair(
    root: Path, name: str, *, label: np.ndarray | None = None, split: str = "training"
) -> tuple[Path, Path]:
    """Write an image of 4x6 and its label in the layout of ADE20K."""
    image_path = root / "images" / split / f"{name}.jpg"
    label_path = root / "annotations" / split / f"{name}.png"
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(4, 6)).save(image_path)
    Image.fromarray(np.zeros((4, 6), np.uint8) if label is None else label).save(label_path)
    return image_path, label_path


def test_folder_source_reads_pairs_in_sorted_order(tmp_path: Path) -> None:
    label = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for name in ("b", "a", "sub/c"):
        write_pair(tmp_path, name, label=label)
    (tmp_path / "images" / "training" / "._a.jpg").touch()  # as macOS leaves behind
    (tmp_path / "images" / "training" / "notes.txt").touch()
    source = FolderSource(ADE, tmp_path, "training")
    assert len(source) == 3
    assert [source[i]["name"] for i in range(3)] == ["a", "b", "sub/c"]
    sample = source[np.int64(2)]
    assert (sample["image"].shape, sample["image"].dtype) == ((4, 6, 3), np.uint8)
    assert sample["label"].tolist() == [[255, *range(5)], *(label[1:] - 1).tolist()]
    with pytest.raises(IndexError):
        source[3]


def test_cityscapes_pairs_by_city_and_stem(tmp_path: Path) -> None:
    image = tmp_path / "leftImg8bit/val/ulm/ulm_0_1_leftImg8bit.png"
    label = tmp_path / "gtFine/val/ulm/ulm_0_1_gtFine_labelTrainIds.png"
    for path in (image, label):
        path.parent.mkdir(parents=True)
    Image.fromarray(pixels(2, 3)).save(image)
    Image.fromarray(np.array([[0, 18, 255], [1, 2, 3]], np.uint8)).save(label)
    # The other files of the official archive must not count as labels.
    Image.new("L", (3, 2)).save(label.with_name("ulm_0_1_gtFine_labelIds.png"))
    Image.new("RGBA", (3, 2)).save(label.with_name("ulm_0_1_gtFine_color.png"))
    source = FolderSource(get_dataset("cityscapes"), tmp_path, "validation")
    assert source.names == ["ulm/ulm_0_1"]
    assert source[0]["label"].tolist() == [[0, 18, 255], [1, 2, 3]]


RAW_10K = np.array([[0, 1, 11], [12, 13, 182]], np.uint8)
RAW_164K = np.array([[255, 0, 10], [11, 12, 181]], np.uint8)
COCO_CLASSES = [[255, 0, 10], [255, 11, 170]]
FORMS = {
    "Cityscapes' labelIds": (
        "cityscapes", "leftImg8bit/val/ulm/a_leftImg8bit.png",
        "gtFine/val/ulm/a_gtFine_labelIds.png",
        np.array([[0, 7, 33], [33, 8, 255]], np.uint8), [[255, 0, 18], [18, 1, 255]],
    ),
    "COCO-Stuff10k's .mat files": (
        "coco_stuff10k", "images/a.jpg", "annotations/a.mat", RAW_10K, COCO_CLASSES,
    ),
    "COCO-Stuff10k, converted": (
        "coco_stuff10k", "images/test2014/a.jpg", "annotations/test2014/a_labelTrainIds.png",
        np.array([[0, 1, 11], [0, 12, 171]], np.uint8), COCO_CLASSES,
    ),
    "COCO-Stuff164k's maps beside the images": (
        "coco_stuff164k", "images/val2017/a.jpg", "annotations/val2017/a.png",
        RAW_164K, COCO_CLASSES,
    ),
    "COCO-Stuff164k's maps in their archive's folder": (
        "coco_stuff164k", "images/val2017/a.jpg",
        "stuffthingmaps_trainval2017/val2017/a.png", RAW_164K, COCO_CLASSES,
    ),
    "COCO-Stuff164k, converted": (
        "coco_stuff164k", "images/val2017/a.jpg", "annotations/val2017/a_labelTrainIds.png",
        np.array([[255, 0, 10], [255, 11, 170]], np.uint8), COCO_CLASSES,
    ),
    "SegNet's CamVid": (
        "camvid", "CamVid/val/a.png", "CamVid/valannot/a.png",
        np.array([[0, 10, 11], [1, 2, 3]], np.uint8), [[0, 10, 255], [1, 2, 3]],
    ),
    "ADE20K as its archive unpacks": (
        "ade20k", "ADEChallengeData2016/images/validation/a.jpg",
        "ADEChallengeData2016/annotations/validation/a.png",
        np.array([[0, 1, 150], [1, 2, 3]], np.uint8), [[255, 0, 149], [0, 1, 2]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_on_disk_gives_the_same_classes(tmp_path: Path, form: str) -> None:
    name, image, label, stored, expected = FORMS[form]
    for file in (image, label):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(2, 3)).save(tmp_path / image)
    if label.endswith(".mat"):
        scipy.io.savemat(tmp_path / label, {"S": stored, "names": ["person"], "captions": "a dog"})
        (tmp_path / "imageLists").mkdir()
        (tmp_path / "imageLists/test.txt").write_text("a\n")
    else:
        Image.fromarray(stored).save(tmp_path / label)
    source = FolderSource(get_dataset(name), tmp_path, "validation")
    assert source[0]["label"].tolist() == expected
    assert source.size(0) == (2, 3)
    record = source.record(0)
    assert record.image == (tmp_path / image).read_bytes()
    assert record.label == (tmp_path / label).read_bytes()


def test_a_list_of_stems_chooses_the_split(tmp_path: Path) -> None:
    for folder in ("images", "annotations", "imageLists"):
        (tmp_path / folder).mkdir()
    for stem in "abc":
        Image.fromarray(pixels(2, 3)).save(tmp_path / f"images/{stem}.jpg")
        scipy.io.savemat(tmp_path / f"annotations/{stem}.mat", {"S": RAW_10K})
    (tmp_path / "imageLists/train.txt").write_text("c\na\n")
    (tmp_path / "imageLists/test.txt").write_text("b\n")
    spec = get_dataset("coco_stuff10k")
    assert FolderSource(spec, tmp_path, "training").names == ["a", "c"]
    assert FolderSource(spec, tmp_path, "validation").names == ["b"]


def test_folder_source_survives_pickling_and_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path / "root", "a")
    monkeypatch.chdir(tmp_path)
    source = FolderSource(ADE, "root", "training")
    content = pickle.dumps(source)
    assert len(content) < 5000
    monkeypatch.chdir("/")
    copy = pickle.loads(content)
    np.testing.assert_array_equal(copy[0]["image"], source[0]["image"])
    assert repr(copy) == repr(source) == "FolderSource(ade20k, training, 1 images)"


def folder_error(root: Path, split: str = "training") -> str:
    with pytest.raises(InputError) as caught:
        FolderSource(ADE, root, split)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_missing_folders_say_what_is_needed_and_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    remedy = (
        "ade20k needs images/training/**/*.jpg with annotations/training/**/*.png\n"
        f"get ade20k: {ADE.download_hint}"
    )
    assert max(map(len, remedy.splitlines())) <= 100
    assert folder_error(Path("absent")) == f"there is no folder {tmp_path}/absent; {remedy}"
    (tmp_path / "images" / "training").mkdir(parents=True)
    expected = f"there is no folder {tmp_path}/annotations/training; {remedy}"
    assert folder_error(tmp_path) == expected
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    assert folder_error(tmp_path) == f"no *.jpg in {tmp_path}/images/training; {remedy}"
    assert "split of ade20k 'train': did you mean 'training'?" in folder_error(tmp_path, "train")


def test_files_without_a_partner_are_counted_and_named(tmp_path: Path) -> None:
    pairs = [write_pair(tmp_path, name) for name in "abcdefg"]
    for _, label in pairs[:5]:
        label.unlink()
    assert folder_error(tmp_path).startswith("5 images without label (a, b, c and 2 more) in ")
    pairs[6][0].unlink()
    assert "(a, b, c and 2 more), 1 label without image (g) in " in folder_error(tmp_path)
    for image, _ in pairs[:5]:
        image.unlink()
    assert folder_error(tmp_path).startswith("1 label without image (g) in ")


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    image, label = write_pair(tmp_path, "a", label=np.zeros((6, 4), np.uint8))
    message = f"{image} is 4x6 (height x width) but its label {label} is 6x4"
    with pytest.raises(InputError, match=re.escape(message)):
        FolderSource(ADE, tmp_path, "training")[0]


def test_an_unknown_id_in_a_folder_names_the_label_file(tmp_path: Path) -> None:
    unknown = np.zeros((4, 6), np.uint8)
    unknown[2, 5] = 151
    _, label = write_pair(tmp_path, "a", label=unknown)
    message = f"{label}: label id 151 at pixel (y=2, x=5)"
    with pytest.raises(InputError, match=re.escape(message)):
        FolderSource(ADE, tmp_path, "training")[0]
