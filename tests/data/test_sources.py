"""Decoding and pairing of files; every fault must raise the message that names it."""

import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from segret_jax.data.class_table import label_lookup
from segret_jax.data.datasets import get_dataset
from segret_jax.data.decode import decode_image, decode_label, map_label
from segret_jax.data.sources import FolderSource
from segret_jax.errors import InputError

ADE = get_dataset("ade20k")


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, channels))
    return values.astype(np.uint8)


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


def write_raw_png(path: Path, *, depth: int, color_type: int, rows: bytes) -> Path:
    """Write a 2x2 PNG in a form that Pillow cannot write; `rows` hold the filter bytes too."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, depth, color_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    return path


def refuses(path: Path, fault: str, *words: str, label: bool = False) -> None:
    """Assert that decoding raises one line that opens with path and fault and has the words."""
    with pytest.raises(InputError) as caught:
        (decode_label if label else decode_image)(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: {fault}")
    for word in words:
        assert word in message


# Images


def test_image_is_rgb_in_that_order(tmp_path: Path) -> None:
    image = pixels(5, 7)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), image)


def test_grey_alpha_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    image = pixels(5, 7, 4)
    Image.fromarray(image).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "rgba.png"), image[..., :3])

    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    grey = decode_image(tmp_path / "grey.png")
    np.testing.assert_array_equal(grey, np.repeat(image[..., :1], 3, axis=2))

    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80\xff")
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert decode_image(tmp_path / "palette.png").tolist() == expected

    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    red = decode_image(tmp_path / "cmyk.tiff")
    assert red.shape == (2, 3, 3)
    assert (red == [255, 0, 0]).all()


def test_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show
    Image.fromarray(pixels(4, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert decode_image(tmp_path / "a.jpg").shape == (4, 6, 3)


def test_16_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "grey.png")
    refuses(tmp_path / "grey.png", "image has more than 8 bits", "I;16", "8-bit RGB")
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    refuses(tmp_path / "float.tiff", "image has more than 8 bits", "F;32F", "8-bit RGB")
    rgb = write_raw_png(tmp_path / "rgb.png", depth=16, color_type=2, rows=bytes(2 * 13))
    refuses(rgb, "image has more than 8 bits", "RGB;16B", "8-bit RGB")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_file_is_refused_or_complete(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels(40, 40)).save(path)
    complete, content = decode_image(path), path.read_bytes()
    refused = 0
    for length in range(1, len(content), 97):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(decode_image(path), complete)
        except InputError:
            refused += 1
    assert refused > 5
    path.write_bytes(content[: len(content) // 2])
    refuses(path, "cannot be read as an image", "download or extract it again")


def test_files_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    refuses(tmp_path / "empty.jpg", "cannot be read as an image")
    refuses(tmp_path / "absent.jpg", "no such file")
    refuses(tmp_path, "cannot be read as an image", "directory")
    Image.fromarray(pixels(10, 10)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    refuses(tmp_path / "bomb.png", "image is too large", "cut it into tiles")


# Labels


def test_grey_and_palette_labels_hold_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 150], [255, 18, 3]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(decode_label(tmp_path / "grey.png"), ids)

    palette = Image.fromarray(ids)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(decode_label(tmp_path / "palette.png"), ids)

    few = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    few.putpalette([9] * 12)
    few.save(tmp_path / "four_colours.png", bits=2)
    assert decode_label(tmp_path / "four_colours.png").tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_labels_of_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "label.png"
    Image.new(mode, (3, 2)).save(path)
    refuses(path, f"label is a PNG of mode {mode} ", "8-bit grey or palette PNG", label=True)


def test_labels_whose_ids_do_not_survive_are_refused(tmp_path: Path) -> None:
    four_bit = write_raw_png(tmp_path / "label.png", depth=4, color_type=0, rows=b"\0\x12\0\x34")
    with Image.open(four_bit) as stretched:
        assert np.array(stretched).tolist() == [[17, 34], [51, 68]]  # what Pillow makes of it
    refuses(
        four_bit,
        "label is a PNG of mode L (stored as L;4)",
        "8-bit grey or palette PNG",
        label=True,
    )
    Image.new("L", (3, 2)).save(tmp_path / "label.jpg")
    refuses(tmp_path / "label.jpg", "label is a JPEG", "8-bit grey or palette PNG", label=True)


def test_broken_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    refuses(path, "no such file", label=True)
    Image.fromarray(pixels(40, 40, 1)[..., 0]).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:600])
    refuses(path, "cannot be read as an image", label=True)
    length = content.index(b"IDAT") - 4
    path.write_bytes(content[:length] + struct.pack(">I", 99) + content[length + 4 :])
    refuses(path, "cannot be read as an image (broken PNG", label=True)


def test_map_label_names_the_stray_id_and_its_pixel() -> None:
    lookup = label_lookup({0: 255, 1: 0, 2: 1})
    raw = np.array([[0, 1, 2], [1, 9, 255], [7, 1, 9]], np.uint8)
    with pytest.raises(InputError) as caught:
        map_label(raw, lookup, path="x/y.png")
    message = str(caught.value)
    assert message.startswith("x/y.png: label id 9 at pixel (y=1, x=1)")
    assert "3 such pixels with ids [7, 9]" in message
    assert "allowed are 0 to 2 and 255" in message
    clean = map_label(raw[:1], lookup, path="x/y.png")
    assert (clean.tolist(), clean.dtype) == ([[255, 0, 1]], np.uint8)


# Folders


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


@pytest.mark.parametrize("content", [b"MATLAB 5.0 MAT-file, cut off", None, np.ones((2, 2)), 300])
def test_a_mat_file_without_a_label_map_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, {"T": 1} if content is None else {"S": content})
    with pytest.raises(InputError, match=re.escape(str(path))):
        decode_label(path)


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
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folders_say_what_is_needed_and_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    remedy = (
        "ade20k needs images/training/**/*.jpg with annotations/training/**/*.png "
        "in the folder given by --config.data.root=DIR; "
        "get ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu"
    )
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
    assert folder_error(tmp_path).startswith("5 images without label (a, b, c, ...) in ")
    pairs[6][0].unlink()
    assert "(a, b, c, ...) 1 labels without image (g) in " in folder_error(tmp_path)
    for image, _ in pairs[:5]:
        image.unlink()
    assert folder_error(tmp_path).startswith("1 labels without image (g) in ")


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    image, label = write_pair(tmp_path, "a", label=np.zeros((6, 4), np.uint8))
    message = f"{image} is 4x6 (height x width) but its label {label} is 6x4"
    with pytest.raises(InputError, match=re.escape(message)):
        FolderSource(ADE, tmp_path, "training")[0]


def test_a_stray_id_in_a_folder_names_the_label_file(tmp_path: Path) -> None:
    stray = np.zeros((4, 6), np.uint8)
    stray[2, 5] = 151
    _, label = write_pair(tmp_path, "a", label=stray)
    message = f"{label}: label id 151 at pixel (y=2, x=5)"
    with pytest.raises(InputError, match=re.escape(message)):
        FolderSource(ADE, tmp_path, "training")[0]
