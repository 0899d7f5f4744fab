"""EXIF orientation: images are upright wherever they are read, and their labels lie on them."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from segret_jax.data.datasets import get_dataset
from segret_jax.data.decode import decode_image, decode_label, image_size
from segret_jax.data.shards.manifest import INDEX, MANIFEST, stored_file
from segret_jax.data.shards.prepare import prepare
from segret_jax.data.shards.prepared import open_files
from segret_jax.data.sources import FolderSource
from segret_jax.doctor import check as doctor
from segret_jax.doctor.report import html
from segret_jax.errors import InputError

CAMVID = get_dataset("camvid")
ORIENTATION = 0x0112
STORED = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
IDS = np.random.default_rng(1).integers(0, 11, (4, 6), np.uint8)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn by numpy, independently of Pillow: the table of the EXIF standard."""
    turned = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels),
    }  # fmt: skip
    return turned[orientation]


def behind_pixels(png: bytes, orientation: int) -> bytes:
    """Move what says the orientation behind the pixels of a PNG that has none."""
    content = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + content
    chunk = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:-12] + chunk + png[-12:]


def encoded(form: str, orientation: int) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(STORED)
    if form == "late PNG":
        image.save(buffer, "PNG")
        return behind_pixels(buffer.getvalue(), orientation)
    options: dict[str, Any] = {"exif": exif(orientation)}
    if form == "XMP":
        form, info = "PNG", PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
        options = {"pnginfo": info}
    elif form == "WEBP":
        options["lossless"] = True
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "late PNG", "XMP", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_form_is_turned_upright_and_its_header_says_so(form: str, orientation: int) -> None:
    content = encoded(form, orientation)
    image = decode_image(content)
    expected = upright(STORED, orientation)
    if form == "JPEG":  # lossy: what Pillow itself makes of it
        with Image.open(io.BytesIO(content)) as opened:
            expected = np.array(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(image, expected)
    assert image_size(content) == image.shape[:2]


def test_sizes_come_from_headers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    late, plain = encoded("late PNG", 6), encoded("late PNG", 1)

    def refuse(self: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", refuse)
    assert image_size(late) == (6, 4)
    assert image_size(plain) == (4, 6)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_invalid_orientation_is_upright(value: int, tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = value
    Image.fromarray(STORED).save(tmp_path / "a.png", exif=tags)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), STORED)
    assert image_size(tmp_path / "a.png") == (4, 6)


@pytest.mark.parametrize(
    "block", [b"", b"II*\0\xff\xff\xff\xff", b"nonsense", b"MM\0*\0\0\0\x08\xff"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_exif_block_does_not_lose_the_image(block: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(STORED).save(buffer, "PNG", exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), STORED)


# Labels


def write_pair(root: Path, orientation: int, label: np.ndarray, **options: Any) -> FolderSource:
    image, path = root / "images/training/a.jpg", root / "annotations/training/a.png"
    for one in (image, path):
        one.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(STORED).save(image, "PNG", exif=exif(orientation))
    Image.fromarray(label).save(path, **options)
    return FolderSource(CAMVID, root, "training")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_of_the_upright_image_is_taken_as_it_is(tmp_path: Path, orientation: int) -> None:
    source = write_pair(tmp_path, orientation, upright(IDS, orientation))
    sample = source[0]
    np.testing.assert_array_equal(sample["image"], upright(STORED, orientation))
    np.testing.assert_array_equal(sample["label"], upright(IDS, orientation))
    assert source.size(0) == sample["label"].shape


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_label_of_the_stored_pixels_is_turned_with_its_image(
    tmp_path: Path, orientation: int
) -> None:
    sample = write_pair(tmp_path, orientation, IDS)[0]
    np.testing.assert_array_equal(sample["image"], upright(STORED, orientation))
    np.testing.assert_array_equal(sample["label"], upright(IDS, orientation))


def test_a_label_with_its_own_orientation_is_turned_by_it(tmp_path: Path) -> None:
    for orientation in (3, 6):
        sample = write_pair(tmp_path, orientation, IDS, exif=exif(orientation))[0]
        np.testing.assert_array_equal(sample["label"], upright(IDS, orientation))
    Image.fromarray(IDS).save(tmp_path / "a.tif", exif=exif(8))
    np.testing.assert_array_equal(decode_label(tmp_path / "a.tif"), upright(IDS, 8))


def test_an_unknown_id_is_named_where_it_lies_in_the_file(tmp_path: Path) -> None:
    label = IDS.copy()
    label[1, 5] = 99
    with pytest.raises(InputError, match=r"label id 99 at pixel \(y=1, x=5\)"):
        write_pair(tmp_path, 6, label)[0]


def test_sizes_that_fit_neither_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is 6x4 .* but its label .*a\.png is 4x5; they must be"):
        write_pair(tmp_path, 6, IDS[:, :5])[0]
    with pytest.raises(
        InputError, match=r"is 4x6 .* is 6x4; they must be equal, and one is turned"
    ):
        write_pair(tmp_path, 1, IDS.T.copy())[0]


def test_the_doctor_says_how_labels_lie_on_turned_images(tmp_path: Path) -> None:
    square = np.random.default_rng(2).integers(0, 11, (4, 4), np.uint8)
    cases = {
        "1 image turned upright": ("note", 6, upright(IDS, 6)),
        "1 label turned with the image": ("note", 6, IDS),
        "1 image of the same size before and after": ("warning", 3, IDS),
    }
    for text, (severity, orientation, label) in cases.items():
        source = write_pair(tmp_path, orientation, label)
        diagnosis = doctor.check(CAMVID, tmp_path, split="training", workers=1)
        (found,) = [finding for finding in diagnosis.findings if text in finding.message]
        assert (found.severity, found.locations) == (
            severity,
            (f"{source.image_path(0)} (orientation {orientation})",),
        )
        assert "Faults and most ignored" in html(diagnosis, seed=0) or severity == "note"
    Image.fromarray(STORED[:, :4]).save(source.image_path(0), "PNG", exif=exif(6))
    Image.fromarray(square).save(source.label_path(0))
    diagnosis = doctor.check(CAMVID, tmp_path, split="training", workers=1)
    assert any(
        "the same size before and after" in finding.message for finding in diagnosis.findings
    )


def test_shards_give_what_their_folder_gives(tmp_path: Path) -> None:
    source = write_pair(tmp_path / "raw", 6, IDS)
    prepare(CAMVID, tmp_path / "raw", str(tmp_path), shards=1)
    prepared = open_files(CAMVID, tmp_path, "training")
    for key in ("image", "label"):
        np.testing.assert_array_equal(prepared[0][key], source[0][key])  # type: ignore[literal-required]
    assert prepared.size(0) == source.size(0) == (6, 4)


def test_shards_that_noted_sizes_before_turning_are_refused(tmp_path: Path) -> None:
    """As a version wrote them that did not turn images."""
    write_pair(tmp_path / "raw", 6, IDS)
    prepare(CAMVID, tmp_path / "raw", str(tmp_path), shards=1)
    folder = tmp_path / "camvid" / "1.0.0"
    (folder / INDEX).write_text((folder / INDEX).read_text().replace("[6, 4]", "[4, 6]"))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][INDEX]["sha256"] = stored_file(folder / INDEX).sha256
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"a is 6x4 upright, but index\.json says 4x6; .*prepare"):
        open_files(CAMVID, tmp_path, "training")[0]
