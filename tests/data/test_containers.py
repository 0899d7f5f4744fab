"""Files that are not what their ending says: lossy labels, Git LFS pointers, empty files."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import load_class_table
from segret_jax.data.datasets import get_dataset, load_dataset
from segret_jax.data.decode import decode_image, decode_label, image_size
from segret_jax.data.shards.manifest import INDEX, MANIFEST
from segret_jax.data.shards.prepare import prepare
from segret_jax.data.shards.prepared import open_files
from segret_jax.data.shards.verify import verify
from segret_jax.data.sources import FolderSource
from segret_jax.doctor import check as doctor
from segret_jax.errors import InputError

CAMVID = get_dataset("camvid")
IDS = np.random.default_rng(0).integers(0, 11, (16, 24), np.uint8)
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
IS_POINTER = "is a Git LFS pointer and not the file itself; run `git lfs pull`"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        decode_label(path)
    assert str(caught.value).startswith(f"{path}: label ")
    return str(caught.value)


@pytest.mark.parametrize("ending", [".tif", ".png"])  # the ending tells nothing
def test_jpeg_inside_tiff_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(IDS).save(path, "TIFF", compression="jpeg")
    assert "is a TIFF of mode L (stored as jpeg " in refused(path)


@pytest.mark.parametrize("ending", [".jp2", ".png"])
def test_jpeg_2000_is_refused(tmp_path: Path, ending: str) -> None:
    Image.fromarray(IDS).save(tmp_path / f"a{ending}", "JPEG2000")
    assert "is a JPEG2000 of mode L" in refused(tmp_path / f"a{ending}")


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_is_refused(tmp_path: Path, lossless: bool) -> None:
    Image.fromarray(IDS).save(tmp_path / "a.png", "WEBP", lossless=lossless)
    assert "is a WEBP of mode RGB" in refused(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("PPM", {}),
        ("TGA", {"compression": "tga_rle"}),
    ],
)
def test_lossless_containers_keep_every_id(
    tmp_path: Path, form: str, options: dict[str, str]
) -> None:
    Image.fromarray(IDS).save(tmp_path / "a.png", form, **options)
    np.testing.assert_array_equal(decode_label(tmp_path / "a.png"), IDS)


def test_a_label_of_several_frames_is_refused(tmp_path: Path) -> None:
    frame = Image.fromarray(IDS)
    frame.save(tmp_path / "a.tif", save_all=True, append_images=[frame, frame])
    assert "label has 3 frames; a label must be" in refused(tmp_path / "a.tif")


def write_pairs(root: Path) -> None:
    for i in range(2):
        for folder, ending in (("images", "jpg"), ("annotations", "png")):
            path = root / folder / "training" / f"{i}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            label = np.roll(IDS, i)
            Image.fromarray(label if ending == "png" else np.stack([label] * 3, 2)).save(path)


@pytest.mark.parametrize("which", ["images/training/1.jpg", "annotations/training/1.png"])
def test_a_pointer_in_the_place_of_a_picture_is_recognized(tmp_path: Path, which: str) -> None:
    write_pairs(tmp_path)
    (tmp_path / which).write_bytes(POINTER)
    message = re.escape(f"{tmp_path / which} {IS_POINTER}")
    with pytest.raises(InputError, match=message):
        FolderSource(CAMVID, tmp_path, "training")[1]
    (found,) = doctor.check(CAMVID, tmp_path, split="training", workers=1).findings[:1]
    assert re.match(message, found.locations[0])


def test_pointers_are_recognized_by_every_reader(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.mat", "a.json"):
        (tmp_path / name).write_bytes(POINTER)
    readers = {
        "a.jpg": (decode_image, decode_label, image_size),
        "a.mat": (decode_label,),
        "a.json": (load_class_table, load_dataset),
    }
    for name, functions in readers.items():
        for read in functions:
            with pytest.raises(InputError, match=re.escape(f"{tmp_path / name} {IS_POINTER}")):
                read(tmp_path / name)
    for content in (POINTER, b"version https://git-lfs"):
        with pytest.raises(InputError, match="image in memory is a Git LFS pointer"):
            decode_image(content)


@pytest.mark.parametrize("which", [MANIFEST, INDEX, "shard"])
def test_pointers_among_shards_are_recognized(tmp_path: Path, which: str) -> None:
    write_pairs(tmp_path / "raw")
    prepare(CAMVID, tmp_path / "raw", str(tmp_path), shards=1)
    folder = tmp_path / "camvid" / "1.0.0"
    (shard,) = json.loads((folder / MANIFEST).read_text())["splits"]["training"]["shards"]
    path = folder / (shard if which == "shard" else which)
    path.write_bytes(POINTER)
    message = re.escape(f"{path} {IS_POINTER}")
    with pytest.raises(InputError, match=message):
        open_files(CAMVID, tmp_path, "training")[0]
    if which == MANIFEST:
        with pytest.raises(InputError, match=message):
            verify(folder)
    else:
        assert re.match(message, verify(folder)[0])


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"version 2 of my notes"])
def test_files_that_are_no_pointers_are_called_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (decode_image, decode_label):
        with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
            read(path)


def test_pictures_with_a_pointers_text_inside_are_read() -> None:
    buffer = io.BytesIO()
    Image.fromarray(IDS).save(buffer, "JPEG", comment=POINTER)
    assert decode_image(buffer.getvalue()).shape == (16, 24, 3)
